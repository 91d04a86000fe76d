'use strict';

/*
 * Compares what the feeds of a registry hold with what the users' databases say that they should,
 * in two passes: each document of each database that belongs into a feed has its row there; and
 * each row has its document. A feed follows at its interval, so what looks wrong is only a suspect,
 * which is looked at again before it counts.
 */

const fs = require('fs');
const { decide } = require('./access');
const { FORMAT, collectionOf, isPassedOn, stale } = require('./copy');
const { Fatal, forEach, sleep } = require('./couch');
const { globalId, isDesign, isUsers } = require('./ids');
const { countOf, isArray, isObject, members, sameText, splitArray, splitObject, stringOf } =
  require('./json');

/** What is found wrong. */
const FEED_KINDS = ['pointer', 'missing', 'stale', 'foreign'];

/** Where the pointers are, documents "feed:<name>". */
const STATE = 'vibe_state';
const POINTER = 'feed:';
/** The module's own members of a row that nothing is known of. */
const OPAQUE = new Set(['vibe_sum']);

/** How often a suspect is looked at again, at least and at most, and the wait between. */
const LOOKS = 2;
const MAX_LOOKS = 20;
const WAIT_MS = 500;
/** How often rows are read again because another database was named meanwhile. */
const MAX_READS = 5;
/** Rows that are asked for at once. */
const GROUP = 200;

/**
 * @typedef {object} Feed
 * @property {string} name
 * @property {string} collection
 * @property {string[]} dbs they take turns
 * @property {string} selector its text
 * @property {string[]} fields none: all
 * @property {string[]} sort
 * @property {boolean} descending
 */

/**
 * @typedef {object} Suspect a row, or a pointer, with which something looks wrong
 * @property {Feed} feed
 * @property {string} gid the row's id, or the feed's name
 * @property {{db: string, did: string}} [pair] whose it is; a pointer, and what is nobody's: none
 * @property {boolean} [pointer]
 * @property {string} [rev] of its document, when it was last looked at
 * @property {number} since when that was seen first
 * @property {import('./copy').Finding} [finding]
 */

// ---- the registry ---------------------------------------------------------------------------

/** The names of a dotted field; a backslash keeps a dot. */
const pathOf = (field) => (field.match(/(?:\\.|[^.\\])+/gs) || [])
  .map((name) => name.replace(/\\(.)/gs, '$1'));

const stringsOf = (text) => (text === undefined ? [] : splitArray(text).map(stringOf));

/** The fields of a sort: names, or objects of a name and a direction. */
function sortOf(text) {
  const terms = text === undefined ? [] : splitArray(text);
  const fields = terms.map((term) => (isObject(term) ? splitObject(term)[0]
    : [stringOf(term), '"asc"']));
  return {
    sort: fields.map(([name]) => name),
    descending: fields.some(([, direction]) => stringOf(direction) === 'desc'),
  };
}

/** @returns {Feed} */
function readFeed(text) {
  const feed = members(text);
  const query = members(feed.get('query'));
  const name = stringOf(feed.get('materializedViewName'));
  const db = `vibe_${name.replace(/^_/, '')}`;
  return {
    name,
    collection: stringOf(feed.get('collectionName')),
    dbs: [db, `${db}-2`],
    selector: query.get('selector'),
    fields: stringsOf(query.get('fields')),
    ...sortOf(query.get('sort')),
  };
}

/**
 * Reads a registry, which nginx has found to be good.
 * @returns {Feed[]}
 */
function readRegistry(file) {
  try {
    return splitArray(fs.readFileSync(file, 'utf8')).map(readFeed);
  } catch (error) {
    throw new Fatal(`cannot read the registry ${file} (${error.code || 'it is none'})`);
  }
}

// ---- what a row has to be -------------------------------------------------------------------

/** The text of a document's field; undefined if it has none. */
function fieldOf(doc, path) {
  let text = new Map(doc).get(path[0]);
  for (const name of path.slice(1)) {
    if (isObject(text)) text = members(text).get(name);
    else if (isArray(text) && /^\d+$/.test(name)) text = splitArray(text)[Number(name)];
    else return undefined;
  }
  return text;
}

/** The text of an object of texts and such objects. */
const textOf = (node) => (typeof node === 'string' ? node
  : `{${[...node].map(([name, value]) => `${JSON.stringify(name)}:${textOf(value)}`).join(',')}}`);

/**
 * These fields of a document, as _find gives them.
 * @returns {[string, string][]} names and texts of its members
 */
function project(doc, fields) {
  if (!fields.length) return doc;
  const root = new Map();
  for (const path of fields.map(pathOf)) {
    const text = fieldOf(doc, path);
    let at = text === undefined ? '' : root;
    for (const name of path.slice(0, -1)) {
      // A text: it is all there.
      if (typeof at === 'string') break;
      if (!at.has(name)) at.set(name, new Map());
      at = at.get(name);
    }
    if (typeof at !== 'string') at.set(path[path.length - 1], text);
  }
  return [...root].map(([name, node]) => [name, textOf(node)]);
}

/**
 * @typedef {object} Wanted the row of a document
 * @property {string} gid its id
 * @property {string} db
 * @property {string} rev the document's
 * @property {Map<string, string>} members those that come from the document
 */

/**
 * @param {Feed} feed
 * @param {{db: string, did: string}} owner
 * @param {[string, string][]} doc one that the feed's selector matches
 * @returns {Wanted | undefined} undefined: it does not belong into the feed
 */
function wantedRow(feed, { db, did }, doc) {
  const known = new Map(doc);
  const id = stringOf(known.get('_id'));
  if (isDesign(id) || decide(doc, did).kind !== 'public') return undefined;
  if (collectionOf(id, known) !== feed.collection) return undefined;
  if (feed.sort.some((field) => fieldOf(doc, pathOf(field)) === undefined)) return undefined;
  const passedOn = project(doc, feed.fields).filter(([name]) => isPassedOn(name));
  return { gid: globalId(did, id), db, rev: stringOf(known.get('_rev')), members: new Map(passedOn) };
}

/** What is not as it should be in a row, by the names of its members. */
function wrongMembers(feed, wanted, row) {
  const right = new Map([...wanted.members,
    ['collection', JSON.stringify(feed.collection)],
    ['vibe_v', JSON.stringify(FORMAT)],
    ['vibe_db', JSON.stringify(wanted.db)]]);
  const shown = !feed.fields.length || feed.fields.includes('_rev');
  if (shown || row.has('vibe_rev')) right.set('vibe_rev', JSON.stringify(wanted.rev));
  const names = new Set([...right.keys(), ...row.keys()]);
  for (const name of ['_id', '_rev', ...OPAQUE]) names.delete(name);
  return [...names].filter((name) => !sameText(row.get(name), right.get(name)));
}

/** What is wrong with a row; undefined: nothing. */
function judgeRow(feed, wanted, row) {
  const found = row && row.doc && new Map(row.doc);
  if (!wanted) {
    return found && { kind: 'foreign', why: 'it does not belong into the feed' };
  }
  if (!found) return { kind: 'missing', why: 'nothing is there' };
  const wrong = wrongMembers(feed, wanted, found);
  return wrong.length ? stale(wrong) : undefined;
}

// ---- all of them ----------------------------------------------------------------------------

class FeedCheck {
  /**
   * @param {import('./check').Check} check what knows the users' databases
   * @param {import('./report').Report} report
   */
  constructor(check, report) {
    const { couch, options } = check;
    Object.assign(this, { check, couch, options, report });
    this.counts = {
      feeds: 0, databases: 0, documents: 0, expected: 0, rows: 0, unowned: 0, moving: 0, failed: 0,
    };
    this.seen = new Map();       // feed -> the ids that belong into it
    this.suspects = [];
  }

  /** @param {Feed[]} feeds */
  async run(feeds) {
    this.counts.feeds = feeds.length;
    this.pass = 'databases';
    await this.#checkPointers(feeds);
    for (const feed of feeds) this.seen.set(feed, new Set());
    const pointers = await this.#pointers(feeds);
    await forEach(this.check.names(), (db) => this.check.guard(db, () =>
      this.#checkDatabase(db, pointers)));
    this.pass = 'feeds';
    for (const feed of feeds) await this.#checkRows(feed);
    for (const suspect of await this.#persisting()) this.report.difference(suspect);
    return { ...this.counts, failed: this.check.counts.failed };
  }

  #suspect(feed, gid, more) {
    this.suspects.push({ feed, gid, since: Date.now(), ...more });
  }

  // ---- pointers -----------------------------------------------------------------------------

  #pointer(feed) {
    return this.couch.get(STATE, `${POINTER}${feed.name}`);
  }

  async #pointers(feeds) {
    const list = await Promise.all(feeds.map((feed) => this.#pointer(feed)));
    return new Map(feeds.map((feed, i) => [feed, list[i]]));
  }

  /** Those of the feeds are there, and no others. */
  async #checkPointers(feeds) {
    for (const feed of feeds) {
      if (await this.#wrongPointer(feed)) this.#suspect(feed, feed.name, { pointer: true });
    }
    const names = new Set(feeds.map(({ name }) => name));
    const pages = this.couch.documents(STATE, { from: POINTER, before: 'feed;' });
    for await (const page of pages) {
      for (const name of page.map(({ id }) => id.slice(POINTER.length))) {
        if (!names.has(name)) this.#suspect({ name }, name, { pointer: true });
      }
    }
  }

  /** @returns {Promise<import('./copy').Finding | undefined>} undefined: nothing is wrong */
  async #wrongPointer(feed) {
    const pointer = await this.#pointer(feed);
    const finding = (why) => ({ kind: 'pointer', why });
    if (!feed.dbs) return pointer && finding('no such feed is registered');
    if (!pointer) return finding('there is none');
    const db = stringOf(pointer.get('db'));
    if (!feed.dbs.includes(db)) return finding('it names no database of the feed');
    const wrong = ['collection', 'fields', 'sort', 'descending'].filter((name) =>
      !sameText(pointer.get(name), JSON.stringify(feed[name])));
    if (wrong.length) return finding(stale(wrong).why);
    const docs = await this.#count(db);
    if (docs === undefined) return finding('its database is not there');
    // What is withdrawn goes before the next run counts.
    const rows = countOf(pointer.get('rows'));
    if (rows === undefined || docs > rows) {
      return finding(`it says that there are ${rows} rows, and there are ${docs}`);
    }
    return undefined;
  }

  /** How many rows a database has; undefined: there is none. */
  async #count(db) {
    const info = await this.couch.info(db);
    if (!info) return undefined;
    let designs = 0;
    const pages = this.couch.documents(db, { from: '_design/', before: '_design0' });
    for await (const page of pages) designs += page.length;
    return countOf(info.get('doc_count')) - designs;
  }

  // ---- rows ---------------------------------------------------------------------------------

  /**
   * What a database calls for.
   * @returns {Promise<Map<string, Wanted>>} by their ids
   */
  async #wanted(feed, { db, did }) {
    const wanted = new Map();
    if (did === undefined) return wanted;
    for await (const docs of this.couch.matching(db, feed.selector)) {
      this.counts.documents += this.pass === 'databases' ? docs.length : 0;
      for (const doc of docs) {
        const row = wantedRow(feed, { db, did }, doc);
        if (row) wanted.set(row.gid, row);
      }
    }
    return wanted;
  }

  /** What is in a feed at these ids, if it has a database. */
  async #rows(pointer, gids) {
    const db = pointer && stringOf(pointer.get('db'));
    const rows = db === undefined ? undefined : await this.couch.winners(db, gids);
    return rows ?? gids.map(() => undefined);
  }

  async #checkDatabase(db, pointers) {
    const did = await this.check.ownerOf(db);
    this.counts.databases++;
    if (did === undefined) this.counts.unowned++;
    for (const [feed, pointer] of did === undefined ? [] : pointers) {
      const wanted = await this.#wanted(feed, { db, did });
      const gids = [...wanted.keys()];
      for (const gid of gids) this.seen.get(feed).add(gid);
      this.counts.expected += gids.length;
      const rows = gids.length ? await this.#rows(pointer, gids) : [];
      gids.filter((gid, i) => judgeRow(feed, wanted.get(gid), rows[i]))
        .forEach((gid) => this.#suspect(feed, gid, { pair: { db, did } }));
    }
    this.report.progress(this.counts, this.pass);
  }

  /** Rows that no database has called for. */
  async #checkRows(feed) {
    let pointer = await this.#pointer(feed);
    for (let n = 0; pointer && n < MAX_READS; n++) {
      const db = pointer.get('db');
      const rows = await this.#foreign(feed, stringOf(db));
      pointer = await this.#pointer(feed);
      if (n < MAX_READS - 1 && pointer && pointer.get('db') !== db) continue;
      this.counts.rows += rows.count;
      for (const { id, of } of rows.foreign) {
        const isOf = of !== undefined && isUsers(of, this.options.prefixes);
        const did = isOf ? await this.check.ownerOf(of) : undefined;
        this.#suspect(feed, id, isOf ? { pair: { db: of, did } } : {});
      }
      return;
    }
  }

  async #foreign(feed, db) {
    const found = { count: 0, foreign: [] };
    if (db === undefined) return found;
    for await (const page of this.couch.documents(db)) {
      const rows = page.filter(({ id }) => !isDesign(id));
      found.count += rows.length;
      for (const { id, doc } of rows) {
        const isKnown = this.seen.get(feed).has(id);
        if (!isKnown) found.foreign.push({ id, of: stringOf(new Map(doc).get('vibe_db')) });
      }
      this.report.progress(this.counts, this.pass);
    }
    return found;
  }

  // ---- suspects -----------------------------------------------------------------------------

  /** Those that stay wrong as long as they may not, while their documents stay as they are. */
  async #persisting() {
    const settle = this.options.settle * 1000;
    const found = [];
    let list = this.suspects;
    for (let look = 1; list.length; look++) {
      list = await this.#look(list);
      const isDue = ({ since }) => look >= LOOKS && Date.now() >= since + settle;
      found.push(...list.filter(isDue));
      list = list.filter((suspect) => !isDue(suspect));
      if (look * WAIT_MS > 2 * settle && look >= MAX_LOOKS) {
        this.counts.moving += list.length;
        break;
      }
      if (list.length) await sleep(WAIT_MS);
    }
    return found;
  }

  /** Looks at suspects again; gives those with something wrong still. */
  async #look(suspects) {
    const left = [];
    const groups = new Map();
    for (const suspect of suspects) {
      const { feed, pointer, pair } = suspect;
      const key = JSON.stringify([feed.name, Boolean(pointer), pair?.db]);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(suspect);
    }
    await forEach(groups.values(), (group) => {
      const [{ feed, pointer, pair }] = group;
      return this.check.guard(pair ? pair.db : feed.name, async () => {
        left.push(...await (pointer ? this.#lookAtPointer(group) : this.#lookAtRows(group)));
      });
    });
    return left;
  }

  async #lookAtPointer([suspect]) {
    const finding = await this.#wrongPointer(suspect.feed);
    return finding ? [{ ...suspect, finding }] : [];
  }

  async #lookAtRows(suspects) {
    const [{ feed, pair }] = suspects;
    const wanted = pair ? await this.#wanted(feed, pair) : new Map();
    const pointer = await this.#pointer(feed);
    const left = [];
    for (let at = 0; at < suspects.length; at += GROUP) {
      const group = suspects.slice(at, at + GROUP);
      const rows = await this.#rows(pointer, group.map(({ gid }) => gid));
      for (const [i, suspect] of group.entries()) {
        const row = wanted.get(suspect.gid);
        const finding = judgeRow(feed, row, rows[i]);
        if (!finding || await this.#isTwin(suspect, row, rows[i])) continue;
        const rev = row ? row.rev : '';
        const isMoving = suspect.rev !== undefined && suspect.rev !== rev;
        left.push({ ...suspect, finding, rev, ...(isMoving ? { since: Date.now() } : {}) });
      }
    }
    return left;
  }

  /**
   * Whether the row is right for another database of the same owner: documents of the same id
   * meet in a feed as in `global`, and either may be there.
   */
  async #isTwin({ feed, gid, pair }, wanted, row) {
    const other = wanted && row && row.doc && stringOf(new Map(row.doc).get('vibe_db'));
    if (!other || other === pair.db || !isUsers(other, this.options.prefixes)) return false;
    if (await this.check.ownerOf(other) !== pair.did) return false;
    const twins = await this.#wanted(feed, { db: other, did: pair.did });
    return twins.has(gid) && !judgeRow(feed, twins.get(gid), row);
  }
}

module.exports = { FEED_KINDS, FeedCheck, readRegistry };
