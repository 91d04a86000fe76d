'use strict';

/*
 * util/adopt.sh: see USAGE.
 *
 * CouchDB compares no revisions of _local documents, so who is first is settled by the claim, the
 * document _design/vibe_owner; only whose claim it is writes the record, _local/vibe_owner.
 */

const fs = require('fs');
const readline = require('readline');
const { Couch, CouchError, Fatal, inOrder } = require('./couch');
const { didOfName, isDatabase, isDid, isUsers } = require('./ids');
const { stringOf } = require('./json');
const { line, plural, readArguments, readPrefixes, run } = require('./terminal');

const USAGE = `usage: util/adopt.sh [OPTION]... FILE

Records whose the existing databases are, from lines \`database DID\` of FILE, or
of standard input if it is \`-\`. Blank lines and what begins with # are skipped.
Prints one line for each: the database, what was done, and why not, divided by
tabs. What is recorded already is not changed, nor is any _security.

  --prefix PREFIX   of users' databases: vibe_db_prefix (userdb-; may be
                    repeated)
  --quiet           print only what was refused or failed
  --help

CouchDB is that of VIBE_COUCHDB_URL, http(s)://user:password@host:port, or else
the one that util/run.sh uses (VIBE_HOME).

Exit status: 0 all are recorded; 1 some were refused; 2 it could not be done.
`;

const OPTIONS = {
  prefix: { type: 'string', multiple: true },
  quiet: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
};

const CLAIM = '_design/vibe_owner';
const RECORD = '_local/vibe_owner';
const FORMAT = 1;
/** How often a record is looked at again that somebody else just wrote. */
const TRIES = 3;

const refused = (why) => ({ result: 'refused', why });

class Adoption {
  constructor(couch, prefixes) {
    Object.assign(this, { couch, prefixes });
    this.last = new Map();   // database -> what is under way for it
  }

  /** Two lines of one database: the first counts, and the other is told what it did. */
  inTurn(entry) {
    const turn = (this.last.get(entry.db) || Promise.resolve()).then(() => this.#one(entry));
    this.last.set(entry.db, turn);
    const forget = () => {
      if (this.last.get(entry.db) === turn) this.last.delete(entry.db);
    };
    turn.then(forget, forget);
    return turn;
  }

  async #one({ db, did, rest }) {
    const why = this.#objection(db, did, rest);
    if (why) return refused(why);
    try {
      return await this.#adopt(db, did);
    } catch (error) {
      if (!(error instanceof CouchError || error instanceof SyntaxError)) throw error;
      return { result: 'failed', why: error.message };
    }
  }

  /** What can be said without asking. */
  #objection(db, did, rest) {
    if (did === undefined || rest) return 'the line is not "database DID"';
    if (!isDatabase(db) || !isUsers(db, this.prefixes)) {
      return `its name is not a user's (--prefix ${this.prefixes.join(' --prefix ')})`;
    }
    if (!isDid(did)) return `not a DID: ${did}`;
    const named = didOfName(db, this.prefixes);
    return named === undefined || named === did ? '' : `its name is that of ${named}`;
  }

  async #adopt(db, did) {
    if (!await this.couch.info(db)) return refused('there is no such database');
    if (didOfName(db, this.prefixes) === did) return { result: 'known', why: 'by its name' };
    for (let n = 0; n < TRIES; n++) {
      const record = await this.couch.get(db, RECORD);
      if (record) return this.#compare(record, did, { result: 'known', why: 'by its record' });
      const claim = await this.couch.get(db, CLAIM);
      if (claim && stringOf(claim.get('did')) !== did) return this.#compare(claim, did);
      if (claim || await this.#put(db, CLAIM, did)) return this.#record(db, did);
      // Somebody was faster, or our own request was carried out twice.
    }
    return { result: 'failed', why: 'somebody else is recording its owner' };
  }

  #compare(found, did, fine) {
    const owner = stringOf(found.get('did'));
    if (owner === did) return fine;
    return refused(owner === undefined ? 'it has a record that names no DID'
      : `it belongs to ${owner}`);
  }

  async #record(db, did) {
    await this.#put(db, RECORD, did);
    const record = await this.couch.get(db, RECORD);
    if (!record) return { result: 'failed', why: 'its record was not kept' };
    return this.#compare(record, did, { result: 'recorded', why: did });
  }

  /** Writes the claim or the record, which are alike; false if one is there. */
  async #put(db, id, did) {
    const status = await this.couch.put(db, id, JSON.stringify({ did, vibe_v: FORMAT }));
    if (status === 404) throw new CouchError(404, `PUT /${db}`);
    return status !== 409;
  }
}

/** Opens the file, so that one that is not there is told before anything is done. */
async function open(name) {
  if (name === '-') return process.stdin;
  try {
    const file = await fs.promises.open(name);
    if ((await file.stat()).isDirectory()) throw Object.assign(new Error(), { code: 'EISDIR' });
    return file.createReadStream();
  } catch (error) {
    throw new Fatal(`cannot read ${name} (${error.code})`);
  }
}

async function* entries(stream) {
  for await (const text of readline.createInterface({ input: stream, crlfDelay: Infinity })) {
    const [db, did, ...rest] = text.trim().split(/\s+/);
    if (db !== '' && db[0] !== '#') yield { db, did, rest: rest.length > 0 };
  }
}

async function main() {
  if (process.argv.includes('--help')) {
    process.stdout.write(USAGE);
    return 0;
  }
  const { values, positionals } = readArguments({ options: OPTIONS, allowPositionals: true });
  const prefixes = readPrefixes(values.prefix);
  if (positionals.length !== 1) throw new Fatal('one FILE is needed (see --help)');
  const stream = await open(positionals[0]);
  const couch = Couch.fromEnvironment();
  const counts = { recorded: 0, known: 0, refused: 0, failed: 0 };
  try {
    await couch.check();
    const adoption = new Adoption(couch, prefixes);
    const work = async (entry) => ({ db: entry.db, ...await adoption.inTurn(entry) });
    for await (const { db, result, why } of inOrder(entries(stream), work)) {
      counts[result]++;
      if (values.quiet && (result === 'recorded' || result === 'known')) continue;
      process.stdout.write(`${[db, result, why].map(line).join('\t')}\n`);
    }
  } finally {
    couch.close();
  }
  if (!values.quiet) {
    const sum = Object.values(counts).reduce((a, b) => a + b);
    const list = Object.entries(counts).map(([name, n]) => `${n.toLocaleString('en')} ${name}`);
    process.stdout.write(`${plural(sum, 'line', 'lines')}: ${list.join(', ')}\n`);
  }
  if (counts.failed) return 2;
  return counts.refused ? 1 : 0;
}

run('adopt.sh', main);
