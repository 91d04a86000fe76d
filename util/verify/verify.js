'use strict';

/*
 * util/verify.sh: see USAGE. Nothing here is the module's: it is the witness against it.
 */

const { Check, KINDS } = require('./check');
const { Couch, Fatal } = require('./couch');
const { FEED_KINDS, FeedCheck, readRegistry } = require('./feeds');
const { isDatabase, isUsers } = require('./ids');
const { Repair } = require('./repair');
const { Report } = require('./report');
const { readArguments, readPrefixes, run } = require('./terminal');

const USAGE = `usage: util/verify.sh [OPTION]...

Compares each user's database with \`global\` and prints what differs, one a
line: the kind, the global id and the reason, divided by tabs.

  missing    a document that others may read has no copy
  stale      its copy is not what it should be
  withdrawn  a copy of what others may not read, or what is not there
  stub       a place-holder that was left behind
  foreign    a document in global that is no copy of any
  conflict   a copy of which several revisions live

With --registry it compares the users' databases with the feeds instead, each in
the database that its pointer names, and prints the feed behind the kind.

  pointer    the pointer is not there, or not what it should be
  missing    a document that belongs into the feed has no row
  stale      its row is not what it should be
  foreign    a row of what does not belong into the feed

  --repair          set right what differs, then compare again
  --database NAME   only this database, and in global its owner's copies
                    (may be repeated)
  --prefix PREFIX   of users' databases: vibe_db_prefix (userdb-; may be
                    repeated)
  --global NAME     the database that holds the copies (global)
  --registry FILE   the feeds of this registry
  --settle SECONDS  how long a difference may persist before it counts (0)
  --json            differences and sum as JSON, one object a line
  --quiet           print no differences, and without --json no sum either
  --progress        tell the progress also where stderr is no terminal
  --help

CouchDB is that of VIBE_COUCHDB_URL, http(s)://user:password@host:port, or else
the one that util/run.sh uses (VIBE_HOME).

Exit status: 0 all is right; 1 something differs, with --repair still; 2 it
could not be found out.
`;

const OPTIONS = {
  repair: { type: 'boolean', default: false },
  database: { type: 'string', multiple: true, default: [] },
  prefix: { type: 'string', multiple: true },
  global: { type: 'string', default: 'global' },
  registry: { type: 'string' },
  settle: { type: 'string', default: '0' },
  json: { type: 'boolean', default: false },
  quiet: { type: 'boolean', default: false },
  progress: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
};

function readOptions() {
  const { values } = readArguments({ options: OPTIONS });
  const prefixes = readPrefixes(values.prefix);
  if (!isDatabase(values.global)) throw new Fatal(`not a database's name: ${values.global}`);
  if (!/^\d{1,6}(?:\.\d{1,3})?$/.test(values.settle)) {
    throw new Fatal(`not a number of seconds: ${values.settle}`);
  }
  for (const name of values.database) {
    if (!isDatabase(name) || !isUsers(name, prefixes)) {
      throw new Fatal(`not a user's database (--prefix ${prefixes.join(' --prefix ')}): ${name}`);
    }
  }
  if (values.registry !== undefined && (values.repair || values.database.length)) {
    throw new Fatal('--registry goes with neither --repair nor --database');
  }
  return {
    ...values, prefixes, settle: Number(values.settle), databases: [...new Set(values.database)],
  };
}

/** One run through all. */
function verify(couch, options, report, repair) {
  const check = new Check(couch, options, report, async (suspects) => {
    const results = repair ? await mender.mend(suspects) : [];
    suspects.forEach((suspect, i) => report.difference(suspect, results[i]));
  });
  const mender = new Repair(check);
  return check.run();
}

async function verifyFeeds(couch, options, report, feeds) {
  const check = new Check(couch, options, report, async () => {});
  const counts = await new FeedCheck(check, report).run(feeds);
  report.sum(counts);
  return counts;
}

async function verifyGlobal(couch, options, report) {
  let counts = await verify(couch, options, report, options.repair);
  let first;
  if (options.repair) {
    first = { found: report.found, repaired: report.repaired };
    if (report.differences) {
      // What is left is told again: it is what the operator has to see to.
      report.begin();
      counts = await verify(couch, options, report, false);
    }
  }
  report.sum(counts, first);
  return counts;
}

async function main() {
  if (process.argv.includes('--help')) {
    process.stdout.write(USAGE);
    return 0;
  }
  const options = readOptions();
  const feeds = options.registry === undefined ? undefined : readRegistry(options.registry);
  const couch = Couch.fromEnvironment();
  const report = new Report(options, feeds ? FEED_KINDS : KINDS);
  try {
    await couch.check();
    const counts = await (feeds ? verifyFeeds(couch, options, report, feeds)
      : verifyGlobal(couch, options, report));
    if (counts.failed) return 2;
    return report.differences ? 1 : 0;
  } finally {
    couch.close();
  }
}

run('verify.sh', main);
