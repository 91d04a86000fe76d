'use strict';

/*
 * One open LevelDB. PouchDB writes it; what PouchDB offers for reading is read here directly, by
 * key range and in batches, from the layout of pouchdb-adapter-leveldb-core 9.0.0 (pinned):
 *
 *   document-store      id                 -> revision tree, winner, sequence number
 *   by-sequence         16 digits          -> body of one revision
 *   attach-binary-store md5-…              -> attachment
 *   local-store         _local/…           -> local document
 *
 * and, of our own, index-… (see indexes.js) and server-meta (the security object, revs_limit).
 */

const leveldown = require('leveldown');
const PouchDB = require('pouchdb-core');
const CoreLevelPouch = require('pouchdb-adapter-leveldb-core');
const { collectLeaves, rootToLeaf } = require('pouchdb-merge');

const DOCUMENTS = 'document-store';
const SEQUENCE = 'by-sequence';
const BINARIES = 'attach-binary-store';
const LOCALS = 'local-store';
const META = 'server-meta';

const REVS_LIMIT = 1000;
const READ_AHEAD = 128 * 1024;
const LEVELDB_OPTIONS = { cacheSize: 2 * 1024 * 1024, maxOpenFiles: 64 };

/** The LevelDBs that PouchDB has opened, by directory: how we come by its handle. */
const handles = new Map();

function trackedLeveldown(location) {
  const handle = leveldown(location);
  handles.set(location, handle);
  return handle;
}

function LevelAdapter(options, callback) {
  CoreLevelPouch.call(this, { ...options, ...LEVELDB_OPTIONS, db: trackedLeveldown }, callback);
}
LevelAdapter.valid = () => true;
LevelAdapter.use_prefix = false;
PouchDB.adapter('leveldb', LevelAdapter, true);

const key = (area, name) => `\xff${area}\xff${name}`;
const sequenceKey = (seq) => key(SEQUENCE, String(seq).padStart(16, '0'));
/** The end of an area or of a range: no UTF-8 text sorts after the byte 0xff. */
const after = (text) => Buffer.concat([Buffer.from(text), Buffer.from([0xff])]);

/** A position in a key range, read page by page. */
class Cursor {
  constructor(level, range) {
    this.prefix = range.prefix.length;
    this.iterator = level.iterator({
      ...range.bounds,
      keyAsBuffer: false,
      valueAsBuffer: false,
      highWaterMark: range.ahead,
    });
    this.done = false;
  }

  /** The next rows, at most `count`; fewer only at the end. */
  page(count) {
    const rows = [];
    return new Promise((resolve, reject) => {
      const next = () => {
        if (rows.length === count || this.done) return resolve(rows);
        this.iterator.next((error, name, value) => {
          if (error) return reject(error);
          if (name === undefined) this.done = true;
          else rows.push({ key: name.slice(this.prefix), value });
          next();
        });
      };
      next();
    });
  }

  end() {
    return new Promise((resolve) => this.iterator.end(() => resolve()));
  }
}

class Store {
  /** Opens the LevelDB in a directory, making it if need be. */
  static async open(location) {
    const store = await Store.#openWith(location, REVS_LIMIT);
    const limit = await store.revsLimit();
    if (limit === REVS_LIMIT) return store;
    // PouchDB takes the limit when it opens; where it stands can be read only then.
    await store.close();
    return Store.#openWith(location, limit);
  }

  static async #openWith(location, limit) {
    const pouch = new PouchDB(location, { adapter: 'leveldb', revs_limit: limit });
    pouch.setMaxListeners(0);
    await pouch.info();
    const level = handles.get(location);
    handles.delete(location);
    return new Store(pouch, level);
  }

  constructor(pouch, level) {
    this.pouch = pouch;
    this.level = level;
  }

  close() {
    return this.pouch.close();
  }

  /** @returns {Promise<{doc_count: number, update_seq: number}>} */
  info() {
    return this.pouch.info();
  }

  // ---- keys -------------------------------------------------------------------------------

  #getMany(keys) {
    if (!keys.length) return Promise.resolve([]);
    return new Promise((resolve, reject) => {
      this.level.getMany(keys, { asBuffer: false }, (error, values) => {
        if (error) reject(error);
        else resolve(values);
      });
    });
  }

  /** The text under a key of an area of our own, or undefined. */
  async getText(area, name) {
    return (await this.#getMany([key(area, name)]))[0];
  }

  getTexts(area, names) {
    return this.#getMany(names.map((name) => key(area, name)));
  }

  /**
   * Writes to areas of our own, all or nothing.
   * @param {Array<{area: string, name: string, value: (string|null)}>} changes null deletes
   */
  writeTexts(changes) {
    const operations = changes.map(({ area, name, value }) => (value === null
      ? { type: 'del', key: key(area, name) }
      : { type: 'put', key: key(area, name), value }));
    return new Promise((resolve, reject) => {
      this.level.batch(operations, (error) => (error ? reject(error) : resolve()));
    });
  }

  /**
   * Walks through a part of an area.
   * @param {{from?: string, to?: string, afterKey?: string, beforeKey?: string,
   *   reverse?: boolean, ahead?: number}} range `from` and `to` are prefixes, both included;
   *   `ahead` is how many bytes are read at once
   */
  cursor(area, range = {}) {
    const prefix = key(area, '');
    const bounds = { reverse: Boolean(range.reverse) };
    if (range.afterKey !== undefined) bounds.gt = prefix + range.afterKey;
    else bounds.gte = prefix + (range.from || '');
    if (range.beforeKey !== undefined) bounds.lt = prefix + range.beforeKey;
    else bounds.lt = after(prefix + (range.to || ''));
    return new Cursor(this.level, { prefix, bounds, ahead: range.ahead || READ_AHEAD });
  }

  /** Deletes an area of our own. */
  clear(area) {
    const prefix = key(area, '');
    return new Promise((resolve, reject) => {
      this.level.clear({ gte: prefix, lt: after(prefix) }, (e) => (e ? reject(e) : resolve()));
    });
  }

  // ---- documents --------------------------------------------------------------------------

  /** The metadata of documents (tree, winner, sequence); undefined for those unknown. */
  async metadata(ids) {
    const texts = await this.#getMany(ids.map((id) => key(DOCUMENTS, id)));
    return texts.map((text) => (text === undefined ? undefined : JSON.parse(text)));
  }

  /**
   * The bodies of revisions.
   * @param {Array<{metadata: object, rev: string}>} wanted
   * @returns {Promise<Array<object|undefined>>} undefined for a body that is not kept
   */
  async bodies(wanted) {
    const known = wanted.map(({ metadata, rev }) => metadata.rev_map[rev]);
    const texts = await this.#getMany(known.filter((seq) => seq).map(sequenceKey));
    let next = 0;
    return wanted.map(({ metadata, rev }, i) => {
      if (!known[i]) return undefined;
      const text = texts[next++];
      return text === undefined ? undefined : toDocument(JSON.parse(text), metadata.id, rev);
    });
  }

  /** The winning documents of these ids; null for those unknown or deleted. */
  async winners(ids) {
    return this.winnersOf(await this.metadata(ids));
  }

  /** The same, of metadata already read. */
  async winnersOf(metadata) {
    const live = metadata.filter((m) => m && !m.deleted);
    const bodies = await this.bodies(live.map((m) => ({ metadata: m, rev: m.winningRev })));
    let next = 0;
    return metadata.map((m) => (m && !m.deleted ? { metadata: m, doc: bodies[next++] } : null));
  }

  /** Walks through the documents by id. Each value is the metadata's text. */
  documents(range) {
    return this.cursor(DOCUMENTS, range);
  }

  /**
   * What changed after a sequence number, oldest first.
   * @returns {Promise<{rows: Array, lastSeq: number, done: boolean}>} rows of
   *   {seq, metadata, doc}; `lastSeq` is how far it has looked
   */
  async changes(since, count) {
    const cursor = this.cursor(SEQUENCE, { from: String(since + 1).padStart(16, '0') });
    try {
      const page = await cursor.page(count);
      const rows = await this.#changeRows(page);
      const lastSeq = page.length ? Number(page[page.length - 1].key) : since;
      return { rows, lastSeq, done: page.length < count };
    } finally {
      await cursor.end();
    }
  }

  async #changeRows(page) {
    const entries = page.map((row) => ({ seq: Number(row.key), doc: JSON.parse(row.value) }));
    const metadata = await this.metadata(entries.map((entry) => entry.doc._id));
    const rows = [];
    entries.forEach(({ seq, doc }, i) => {
      // An older revision's entry: the document has a later one further on.
      if (!metadata[i] || metadata[i].seq !== seq) return;
      rows.push({ seq, metadata: metadata[i], doc });
    });
    await this.#winnersInto(rows);
    return rows;
  }

  /** A change may be of a losing revision; what is shown is the winner. */
  async #winnersInto(rows) {
    const losing = rows.filter((row) => row.doc._rev !== row.metadata.winningRev);
    const bodies = await this.bodies(losing.map((row) =>
      ({ metadata: row.metadata, rev: row.metadata.winningRev })));
    losing.forEach((row, i) => { row.doc = bodies[i]; });
    for (const row of rows) {
      row.doc = toDocument(row.doc, row.metadata.id, row.metadata.winningRev);
    }
  }

  // ---- local documents, attachments, security ---------------------------------------------

  async getLocal(id) {
    const text = await this.getText(LOCALS, id);
    return text === undefined ? null : JSON.parse(text);
  }

  putLocal(doc) {
    return this.writeTexts([{ area: LOCALS, name: doc._id, value: JSON.stringify(doc) }]);
  }

  removeLocal(id) {
    return this.writeTexts([{ area: LOCALS, name: id, value: null }]);
  }

  /** The bytes of an attachment. Empty ones are not stored. */
  getBinary(digest) {
    return new Promise((resolve) => {
      this.level.get(key(BINARIES, digest), { asBuffer: true }, (error, value) =>
        resolve(error ? Buffer.alloc(0) : value));
    });
  }

  async getMeta(name) {
    const text = await this.getText(META, name);
    return text === undefined ? null : JSON.parse(text);
  }

  putMeta(name, value) {
    return this.writeTexts([{ area: META, name, value: JSON.stringify(value) }]);
  }

  /** How many revisions of a document are remembered. */
  async revsLimit() {
    return await this.getMeta('revs_limit') ?? REVS_LIMIT;
  }

  /** The same, from the next time on that the LevelDB is opened. */
  putRevsLimit(limit) {
    return this.putMeta('revs_limit', limit);
  }
}

/** A stored body as clients see it: `_id` and `_rev` first, attachments as stubs. */
function toDocument(body, id, rev) {
  const { _id, _rev, _deleted, _attachments, ...members } = body;
  const doc = { _id: id, _rev: rev, ...members };
  if (_deleted) doc._deleted = true;
  if (_attachments) doc._attachments = toStubs(_attachments);
  return doc;
}

function toStubs(attachments) {
  const stubs = {};
  for (const [name, { content_type, revpos, digest, length }] of Object.entries(attachments)) {
    stubs[name] = { content_type, revpos, digest, length, stub: true };
  }
  return stubs;
}

/** The leaves of a document, winner first. */
function leavesOf(metadata) {
  const leaves = collectLeaves(metadata.rev_tree)
    .map(({ rev, opts }) => ({ rev, deleted: Boolean(opts.deleted) }));
  const winner = leaves.filter((leaf) => leaf.rev === metadata.winningRev);
  return winner.concat(leaves.filter((leaf) => leaf.rev !== metadata.winningRev));
}

/** The live leaves that lost. */
function conflictsOf(metadata) {
  return leavesOf(metadata)
    .filter((leaf) => leaf.rev !== metadata.winningRev && !leaf.deleted)
    .map((leaf) => leaf.rev);
}

/**
 * The way from a leaf back through a revision.
 * @returns {Array<{leaf: string, revisions: {start: number, ids: string[]}}>} one for each leaf
 *   that descends from `rev`; `revisions` is the path of `rev` itself
 */
function pathsThrough(metadata, rev) {
  const dash = rev.indexOf('-');
  const generation = Number(rev.slice(0, dash));
  const hash = rev.slice(dash + 1);
  const found = [];
  for (const { pos, ids } of rootToLeaf(metadata.rev_tree)) {
    const at = generation - pos;
    if (at < 0 || at >= ids.length || ids[at].id !== hash) continue;
    const path = ids.slice(0, at + 1).map((node) => node.id).reverse();
    found.push({
      leaf: `${pos + ids.length - 1}-${ids[ids.length - 1].id}`,
      revisions: { start: generation, ids: path },
    });
  }
  return found;
}

module.exports = { Store, conflictsOf, leavesOf, pathsThrough };
