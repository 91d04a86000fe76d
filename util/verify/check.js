'use strict';

/*
 * Compares the users' databases with `global`, in two passes: each document of each database has
 * its copy, or none; and each copy in `global` has its document. While that is done others
 * write, so what looks wrong is only a suspect, which is looked at again before it counts.
 */

const { isNewer, isStub, isWanted, judge, wantedFor } = require('./copy');
const { CouchError, Fatal, forEach, sleep } = require('./couch');
const { didOfName, isDesign, isDid, isUsers, splitGlobalId } = require('./ids');
const { stringOf } = require('./json');

/** How often a suspect is looked at again, at least and at most, and the waits between. */
const LOOKS = 2;
const MAX_LOOKS = 20;
const FIRST_WAIT_MS = 250;
const MAX_WAIT_MS = 1000;
/** Suspects that are waited for at once. */
const MAX_SUSPECTS = 10000;
/** Documents that are asked for at once. */
const GROUP = 200;

/** What is found wrong. */
const KINDS = ['missing', 'stale', 'withdrawn', 'stub', 'foreign', 'conflict'];

/**
 * @typedef {object} Suspect a place in `global` where something looks wrong
 * @property {string} gid
 * @property {{db: string, did: string, id: string}} [pair] the document it belongs to
 * @property {import('./copy').Finding} [finding] what was wrong when it was last looked at
 */

function* groups(list) {
  for (let at = 0; at < list.length; at += GROUP) yield list.slice(at, at + GROUP);
}

/** In groups, each of documents of one database and owner. */
function byDatabase(suspects) {
  const map = new Map();
  for (const suspect of suspects) {
    const key = `${suspect.pair.db} ${suspect.pair.did}`;
    if (!map.has(key)) map.set(key, []);
    map.get(key).push(suspect);
  }
  return [...map.values()].flatMap((list) => [...groups(list)]);
}

/** The same, and those without a document by themselves. */
function inGroups(suspects) {
  return [...byDatabase(suspects.filter(({ pair }) => pair)),
    ...groups(suspects.filter(({ pair }) => !pair))];
}

class Check {
  /**
   * @param {import('./couch').Couch} couch
   * @param {object} options
   * @param {string[]} options.prefixes of users' databases
   * @param {string[]} options.databases only these, if there are any
   * @param {string} options.global
   * @param {number} options.settle seconds that a difference may persist
   * @param {object} report is told `progress(counts, pass)`, `failed(what, error)`
   * @param {function(Suspect[]): Promise} found is told of the differences
   */
  constructor(couch, options, report, found) {
    Object.assign(this, { couch, options, report, found });
    this.counts = {
      databases: 0, documents: 0, expected: 0, copies: 0,
      unowned: 0, uncollected: 0, newer: 0, twins: 0, moving: 0, failed: 0,
    };
    this.suspects = [];
    this.flushing = Promise.resolve();
    this.reported = new Set();
  }

  async run() {
    this.pass = 'databases';
    await forEach(this.names(), (db) => this.guard(db, () => this.#checkDatabase(db)));
    await this.#flush();
    this.pass = this.options.global;
    for (const range of await this.#ranges()) await this.#checkGlobal(range);
    await this.#flush();
    return this.counts;
  }

  /** The users' databases. */
  async* names() {
    const { databases, prefixes, global } = this.options;
    if (databases.length) {
      yield* databases;
      return;
    }
    for (const prefix of prefixes) {
      for await (const name of this.couch.databases(prefix)) {
        if (isUsers(name, [prefix]) && name !== global) yield name;
      }
    }
  }

  /** One database that fails keeps no other out. */
  async guard(what, work) {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof CouchError || error instanceof SyntaxError)) throw error;
      this.counts.failed++;
      this.report.failed(what, error);
    }
  }

  #progress() {
    this.report.progress(this.counts, this.pass);
  }

  // ---- what is where ------------------------------------------------------------------------

  /** The DID whose database this is, undefined where nobody knows. */
  async ownerOf(db) {
    const did = didOfName(db, this.options.prefixes);
    if (did !== undefined) return did;
    const record = await this.couch.get(db, '_local/vibe_owner');
    const recorded = record && stringOf(record.get('did'));
    return isDid(recorded) ? recorded : undefined;
  }

  /** What is in `global` at these places; without it nothing can be said of anything. */
  async places(gids) {
    try {
      return await this.couch.winners(this.options.global, gids) ?? gids.map(() => undefined);
    } catch (error) {
      if (!(error instanceof CouchError)) throw error;
      throw new Fatal(`${this.options.global} cannot be read: ${error.message}`);
    }
  }

  /** What `global` should say of these documents of one database. */
  async wanted({ db, did }, ids) {
    const rows = await this.couch.winners(db, ids);
    return ids.map((id, i) => wantedFor({ db, did }, id, rows && rows[i]));
  }

  /**
   * Whether the copy is right for another database of the same owner: documents of the same id
   * meet in `global`, and either may be there.
   */
  async isTwin({ db, did, id }, row) {
    const other = row && row.doc && stringOf(new Map(row.doc).get('vibe_db'));
    if (other === undefined || other === db || !isUsers(other, this.options.prefixes)) return false;
    if (await this.ownerOf(other) !== did) return false;
    const [wanted] = await this.wanted({ db: other, did }, [id]);
    return isWanted(wanted);
  }

  /** Whether a tombstone was written by a later version. */
  async isNewerTombstone(gid, row) {
    if (!row || !row.deleted) return false;
    const tombstone = await this.couch.revision(this.options.global, gid, row.rev);
    return tombstone !== undefined && isNewer(tombstone);
  }

  // ---- first pass: the databases ------------------------------------------------------------

  async #checkDatabase(db) {
    const did = await this.ownerOf(db);
    if (this.options.databases.length && !await this.couch.info(db)) return;
    this.counts.databases++;
    if (did === undefined) {
      this.counts.unowned++;
      return;
    }
    for await (const page of this.couch.documents(db)) {
      const wanted = page.filter((row) => !isDesign(row.id))
        .map((row) => ({ id: row.id, ...wantedFor({ db, did }, row.id, row) }));
      this.counts.documents += wanted.length;
      this.counts.uncollected += wanted.filter((one) => one.homeless).length;
      await this.#compare(db, did, wanted.filter(isWanted));
      this.#progress();
    }
    this.#progress();
  }

  async #compare(db, did, wanted) {
    if (!wanted.length) return;
    this.counts.expected += wanted.length;
    const rows = await this.places(wanted.map((one) => one.gid));
    await this.#suspect(wanted.filter((one, i) => judge(one, rows[i]))
      .map(({ gid, id }) => ({ gid, pair: { db, did, id } })));
  }

  // ---- second pass: global ------------------------------------------------------------------

  /** Where to look in `global`: everywhere, or where the named databases' copies are. */
  async #ranges() {
    const { databases } = this.options;
    if (!databases.length) return [{}];
    const owners = new Set();
    const nameless = new Set();
    for (const db of databases) {
      const did = await this.ownerOf(db);
      if (did === undefined) nameless.add(db);
      else owners.add(did);
    }
    const ranges = [...owners].map((did) => ({
      from: `${did}:`, before: `${did};`, // what comes after ":"
      has: (row) => row.id.slice(0, row.id.lastIndexOf(':')) === did,
    }));
    const isOf = (row) => nameless.has(stringOf(new Map(row.doc).get('vibe_db')));
    return nameless.size ? [...ranges, { has: isOf }] : ranges;
  }

  async #checkGlobal({ from, before, has = () => true }) {
    try {
      const pages = this.couch.documents(this.options.global, { from, before });
      await forEach(pages, async (page) => {
        const rows = page.filter((row) => !isDesign(row.id) && has(row));
        this.counts.copies += rows.length;
        this.counts.newer += rows.filter((row) => isNewer(new Map(row.doc))).length;
        const suspects = await this.classify(rows);
        await this.#suspect(suspects.filter(({ gid }) => !this.reported.has(gid)));
        this.#progress();
      });
    } catch (error) {
      if (!(error instanceof CouchError)) throw error;
      throw new Fatal(`${this.options.global} cannot be read: ${error.message}`);
    }
  }

  /**
   * Those of the live documents of `global` that should not be there.
   * @param {import('./couch').Row[]} rows
   * @returns {Promise<Suspect[]>}
   */
  async classify(rows) {
    const suspects = [];
    const candidates = [];
    for (const row of rows) {
      const copy = new Map(row.doc);
      if (isNewer(copy)) continue;
      const suspect = this.#candidate(row.id, copy);
      (suspect.finding ? suspects : candidates).push(suspect);
    }
    for (const group of byDatabase(candidates)) {
      const { db } = group[0].pair;
      await this.guard(db, async () => { suspects.push(...await this.#unwanted(db, group)); });
    }
    return suspects;
  }

  /** A copy's document, or why it cannot be a copy. */
  #candidate(gid, copy) {
    const foreign = (why, leave = false) => ({ gid, finding: { kind: 'foreign', why, leave } });
    const place = splitGlobalId(gid);
    const db = stringOf(copy.get('vibe_db'));
    const owner = stringOf(copy.get('vibe_owner'));
    const { prefixes } = this.options;
    if (!place) return foreign('its id is no global id');
    if (db === undefined) return foreign('it names no database (vibe_db)');
    if (owner !== place.did && !isStub(copy)) return foreign('its id is not its vibe_owner\'s');
    // Perhaps only the prefix was forgotten.
    if (!isUsers(db, prefixes)) return foreign('its vibe_db has another prefix', true);
    if ((didOfName(db, prefixes) ?? place.did) !== place.did) {
      return foreign('its vibe_db is another DID\'s');
    }
    return { gid, pair: { db, ...place } };
  }

  /** Those whose document gives them no place. */
  async #unwanted(db, suspects) {
    const owner = await this.ownerOf(db);
    const ids = suspects.map(({ pair }) => pair.id);
    const rows = await this.couch.winners(db, ids);
    return suspects.flatMap(({ gid, pair }, i) => {
      if (owner !== undefined && owner !== pair.did) {
        return [{ gid, finding: { kind: 'foreign', why: 'its vibe_db is another DID\'s' } }];
      }
      if (!isWanted(wantedFor(pair, pair.id, rows && rows[i]))) return [{ gid, pair }];
      if (owner !== undefined) return [];
      const why = 'its database has no known owner';
      return [{ gid, finding: { kind: 'foreign', why, leave: true } }];
    });
  }

  // ---- suspects -----------------------------------------------------------------------------

  async #suspect(suspects) {
    this.suspects.push(...suspects);
    this.seen = Date.now();
    if (this.suspects.length >= MAX_SUSPECTS) await this.#flush();
  }

  /** Looks at the suspects until each is cleared or counts; one such round at a time. */
  #flush() {
    this.flushing = this.flushing.then(async () => {
      const suspects = this.suspects;
      this.suspects = [];
      const found = await this.#persisting(suspects);
      for (const { gid } of found) this.reported.add(gid);
      await forEach(inGroups(found), async (group) => {
        await this.found(group);
        this.#progress();
      });
    });
    return this.flushing;
  }

  async #persisting(suspects) {
    const due = this.seen + this.options.settle * 1000;
    let list = suspects;
    for (let look = 1; list.length; look++) {
      list = await this.look(list);
      const late = look >= LOOKS && Date.now() >= due;
      const moving = list.filter(({ finding }) => !finding).length;
      if (late && (!moving || look >= MAX_LOOKS)) {
        this.counts.moving += moving;
        return list.filter(({ finding }) => finding);
      }
      const wait = look < LOOKS ? FIRST_WAIT_MS * look : Math.max(due - Date.now(), FIRST_WAIT_MS);
      await sleep(Math.min(wait, MAX_WAIT_MS));
    }
    return [];
  }

  /**
   * Looks at suspects again.
   * @param {Suspect[]} suspects
   * @returns {Promise<Suspect[]>} those with something wrong; without a finding: one whose document
   *   was changed while it was looked at
   */
  async look(suspects) {
    const left = [];
    await forEach(inGroups(suspects), (group) => {
      const { pair } = group[0];
      return this.guard(pair ? pair.db : group[0].gid, async () => {
        left.push(...await (pair ? this.#lookAtPairs(group) : this.#lookAtForeign(group)));
      });
    });
    return left;
  }

  async #lookAtForeign(suspects) {
    const rows = await this.places(suspects.map(({ gid }) => gid));
    const found = await this.classify(rows.filter((row) => row && row.doc));
    return found.filter(({ finding }) => finding);
  }

  /** The document, then its copy, then the document once more. */
  async #lookAtPairs(suspects) {
    const { db } = suspects[0].pair;
    const ids = suspects.map(({ pair }) => pair.id);
    const wanted = await this.wanted(suspects[0].pair, ids);
    const rows = await this.places(suspects.map(({ gid }) => gid));
    const again = await this.couch.winners(db, ids, { bodies: false });
    const left = [];
    for (const [i, { gid, pair }] of suspects.entries()) {
      const rev = again && again[i] ? again[i].rev : '';
      const finding = await this.examine(pair, wanted[i], rows[i]);
      if (finding) left.push({ gid, pair, finding: rev === wanted[i].rev ? finding : undefined });
    }
    return left;
  }

  /** What is wrong with a place, all things considered. */
  async examine(pair, wanted, row) {
    const finding = judge(wanted, row);
    if (!finding || finding.kind === 'newer') return undefined;
    if (finding.kind === 'stale' && await this.isTwin(pair, row)) {
      this.counts.twins++;
      return undefined;
    }
    if (finding.kind === 'missing' && await this.isNewerTombstone(wanted.gid, row)) {
      this.counts.newer++;
      return undefined;
    }
    return finding;
  }
}

module.exports = { Check, KINDS };
