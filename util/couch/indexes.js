'use strict';

/*
 * JSON indexes: their definitions in design documents, building them, reading them.
 *
 * An index lives in the database's own LevelDB, in three areas of Store:
 *
 *   index-rows-S   sortable values + document id -> document id
 *   index-keys-S   document id                   -> its key in index-rows-S
 *   index-state    S                             -> {"seq": how far it is built}
 *
 * S names the definition, so a changed definition is a new index. A batch of changes and the new
 * state are written at once: a crash leaves an index that is behind, never one that is wrong.
 */

const crypto = require('crypto');
const { HttpError, allow, isObject, notFound, notImplemented, readJson, sendJson } =
  require('./http');
const { sortable } = require('./collation');
const selectors = require('./selector');

const BATCH = 500;
const STATE = 'index-state';
const rowsArea = (index) => `index-rows-${index.signature}`;
const keysArea = (index) => `index-keys-${index.signature}`;
const sha1 = (text) => crypto.createHash('sha1').update(text).digest('hex');
const fail = (error, reason) => new HttpError(400, error, reason);

const SPECIAL = {
  ddoc: null,
  name: '_all_docs',
  type: 'special',
  columns: ['_id'],
  filter: null,
  json: { ddoc: null, name: '_all_docs', type: 'special', def: { fields: [{ _id: 'asc' }] } },
};

// ---- definitions ----------------------------------------------------------------------------

/**
 * Reads a sort: ["a", {"b": "desc"}].
 * @returns {Array<{field: string, direction: 'asc'|'desc'}>} all of one direction
 */
function parseSort(sort) {
  if (!Array.isArray(sort)) {
    throw fail('invalid_sort_json', 'Sort must be an array of sort specs, not: '
      + JSON.stringify(sort));
  }
  const parsed = sort.map((item) => {
    if (typeof item === 'string' && item) return { field: item, direction: 'asc' };
    const [field, ...more] = isObject(item) ? Object.keys(item) : [];
    if (!field || more.length) {
      throw fail('invalid_sort_field', `Invalid sort field: ${JSON.stringify(item)}`);
    }
    if (item[field] !== 'asc' && item[field] !== 'desc') {
      throw fail('invalid_sort_field', `Invalid sort field: ${JSON.stringify(item)}`);
    }
    return { field, direction: item[field] };
  });
  if (new Set(parsed.map((item) => item.direction)).size > 1) {
    throw fail('unsupported_mixed_sort',
      'Sorts currently only support a single direction for all fields.');
  }
  return parsed;
}

/** An index as the other modules use it. */
function makeIndex(ddoc, name, fields, filter) {
  const columns = fields.map((item) => item.field);
  const def = { fields: fields.map((item) => ({ [item.field]: item.direction })) };
  if (filter) def.partial_filter_selector = filter;
  return {
    ddoc,
    name,
    type: 'json',
    columns,
    paths: columns.map(selectors.parseField),
    filter: filter ? selectors.normalize(filter) : null,
    signature: sha1(JSON.stringify([columns, filter || null])).slice(0, 16),
    json: { ddoc, name, type: 'json', partitioned: false, def },
  };
}

function indexFromView(ddoc, name, view) {
  if (!isObject(view) || !isObject(view.map) || !isObject(view.map.fields)) return null;
  const fields = Object.entries(view.map.fields)
    .map(([field, direction]) => ({ field, direction }));
  const filter = view.map.partial_filter_selector;
  const filtered = isObject(filter) && Object.keys(filter).length > 0;
  try {
    return fields.length ? makeIndex(ddoc, name, fields, filtered ? filter : null) : null;
  } catch (e) {
    return null;
  }
}

/** The indexes that a design document defines. */
function indexesOf(doc) {
  if (doc.language !== 'query' || !isObject(doc.views)) return [];
  return Object.entries(doc.views)
    .map(([name, view]) => indexFromView(doc._id, name, view))
    .filter((index) => index);
}

async function readDefinitions(store) {
  const cursor = store.documents({ from: '_design/', to: '_design/' });
  const ids = [];
  try {
    while (!cursor.done) ids.push(...(await cursor.page(BATCH)).map((row) => row.key));
  } finally {
    await cursor.end();
  }
  const found = (await store.winners(ids)).filter((winner) => winner);
  return found.flatMap((winner) => indexesOf(winner.doc));
}

/** The indexes of a database, _all_docs first. They are read again after a design is written. */
async function listIndexes(db, store) {
  if (!db.indexes) {
    const reading = readDefinitions(store);
    db.indexes = reading;
    reading.catch(() => { if (db.indexes === reading) db.indexes = null; });
  }
  return [SPECIAL, ...await db.indexes];
}

// ---- building -------------------------------------------------------------------------------

/** How far an index of a database is built, and the build that is under way. */
function buildOf(db, index) {
  if (!db.builds.has(index.signature)) db.builds.set(index.signature, { seq: null, task: null });
  return db.builds.get(index.signature);
}

async function builtSeq(store, db, index) {
  const build = buildOf(db, index);
  if (build.seq === null) {
    const text = await store.getText(STATE, index.signature);
    if (build.seq === null) build.seq = text === undefined ? 0 : JSON.parse(text).seq;
  }
  return build.seq;
}

/** The key of a document in an index, or null if it is not in it. */
function rowKey(index, { metadata, doc }) {
  if (metadata.deleted || !doc || metadata.id.startsWith('_design/')) return null;
  const values = index.paths.map((path) => selectors.fieldValue(doc, path));
  if (values.includes(undefined) || !selectors.matches(index.filter, doc)) return null;
  return values.map(sortable).join('') + metadata.id;
}

/** Takes the next batch of changes into an index. */
async function advance(store, db, index) {
  const build = buildOf(db, index);
  const { update_seq: newest } = await store.info();
  const page = await store.changes(await builtSeq(store, db, index), BATCH);
  const { rows } = page;
  const lastSeq = page.done ? Math.max(page.lastSeq, newest) : page.lastSeq;
  const ids = rows.map((row) => row.metadata.id);
  const oldKeys = await store.getTexts(keysArea(index), ids);
  const changes = [{ area: STATE, name: index.signature, value: JSON.stringify({ seq: lastSeq }) }];
  rows.forEach((row, i) => {
    const newKey = rowKey(index, row);
    if (oldKeys[i] === (newKey === null ? undefined : newKey)) return;
    if (oldKeys[i] !== undefined) {
      changes.push({ area: rowsArea(index), name: oldKeys[i], value: null });
    }
    if (newKey !== null) changes.push({ area: rowsArea(index), name: newKey, value: ids[i] });
    changes.push({ area: keysArea(index), name: ids[i], value: newKey });
  });
  await store.writeTexts(changes);
  build.seq = lastSeq;
}

async function build(db, index, target) {
  for (;;) {
    // One batch at a time: others may want the LevelDB's place meanwhile.
    const done = await db.use(async (store) => {
      if (await builtSeq(store, db, index) >= target) return true;
      await advance(store, db, index);
      return false;
    });
    if (done) return;
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Resolves when the index holds everything that was written before this call. */
async function bringUpToDate(db, index) {
  const { update_seq: target } = await db.use((store) => store.info());
  for (;;) {
    const state = buildOf(db, index);
    if (state.seq !== null && state.seq >= target) return;
    if (!state.task) {
      state.task = build(db, index, target).finally(() => { state.task = null; });
    }
    await state.task;
  }
}

/** Builds the database's indexes without anybody waiting, as CouchDB's ken does. */
async function buildInBackground(db) {
  const indexes = await db.use((store) => listIndexes(db, store));
  for (const index of indexes) {
    if (index.type === 'json') await bringUpToDate(db, index);
  }
}

function startBuilding(db) {
  buildInBackground(db).catch((error) => {
    if (!db.gone) console.error(error);
  });
}

// ---- HTTP -----------------------------------------------------------------------------------

const designId = (name) => (name.startsWith('_design/') ? name : `_design/${name}`);

function textOption(body, name) {
  const value = body[name];
  if (value === undefined) return undefined;
  if (typeof value !== 'string') {
    throw fail('invalid_string', `Invalid string: ${JSON.stringify(value)}`);
  }
  if (!value) throw fail('invalid_empty_string', 'Index name or ddoc cannot be empty string');
  return value;
}

function definitionFrom(body) {
  const known = ['index', 'type', 'name', 'ddoc', 'w', 'partitioned', 'partial_filter_selector'];
  const unknown = Object.keys(body).find((name) => !known.includes(name));
  if (unknown) throw fail('invalid_key', `Invalid key ${unknown} for this request.`);
  if (body.index === undefined) {
    throw fail('missing_required_key', 'Missing required key: index');
  }
  if (!isObject(body.index)) {
    throw fail('invalid_index', 'JSON indexes must be an object, not: '
      + JSON.stringify(body.index));
  }
  if (body.type !== undefined && body.type !== 'json') {
    if (body.type === 'text' || body.type === 'nouveau') throw notImplemented('A text index');
    throw fail('invalid_index', `Invalid type for index: ${body.type}`);
  }
  const fields = parseSort(body.index.fields);
  const filter = body.index.partial_filter_selector;
  if (filter !== undefined) selectors.normalize(filter);
  fields.forEach((item) => selectors.parseField(item.field));
  const generated = sha1(JSON.stringify(body.index));
  return {
    fields,
    filter: filter || {},
    ddoc: designId(textOption(body, 'ddoc') || generated),
    name: textOption(body, 'name') || generated,
  };
}

function viewFrom({ fields, filter }) {
  return {
    map: {
      fields: Object.fromEntries(fields.map((item) => [item.field, item.direction])),
      partial_filter_selector: filter,
    },
    reduce: '_count',
    options: { def: { fields: fields.map((item) =>
      (item.direction === 'asc' ? item.field : { [item.field]: item.direction })) } },
  };
}

/** POST /db/_index. */
async function createIndex({ db, req, res }) {
  const definition = definitionFrom(await readJson(req, { strictType: true }));
  const { ddoc, name } = definition;
  const [winner] = await db.use((store) => store.winners([ddoc]));
  const doc = winner ? winner.doc : { _id: ddoc, language: 'query', views: {} };
  if (doc.language !== 'query') {
    throw fail('invalid_index', 'Invalid design document query language.');
  }
  const view = viewFrom(definition);
  const views = isObject(doc.views) ? doc.views : {};
  const exists = JSON.stringify(views[name]) === JSON.stringify(view);
  if (exists) {
    // Who wrote it may not have come to say so yet.
    db.indexes = null;
  } else {
    doc.views = { ...views, [name]: view };
    const [row] = await db.writes.write([doc]);
    if (row.error) {
      throw new HttpError(500, 'error_saving_ddoc',
        'Encountered a conflict while saving the design document.');
    }
  }
  startBuilding(db);
  sendJson(res, 200, { result: exists ? 'exists' : 'created', id: ddoc, name });
}

/** GET /db/_index. */
async function getIndexes({ db, res }) {
  const indexes = await db.use((store) => listIndexes(db, store));
  sendJson(res, 200, { total_rows: indexes.length, indexes: indexes.map((index) => index.json) });
}

/** DELETE /db/_index/DDOC/json/NAME. */
async function deleteIndex({ db, res }, ddoc, name) {
  const { index, doc } = await db.use(async (store) => {
    const [winner] = await store.winners([ddoc]);
    const indexes = winner ? indexesOf(winner.doc) : [];
    return { index: indexes.find((one) => one.name === name), doc: winner && winner.doc };
  });
  if (!index) throw notFound();
  delete doc.views[name];
  const emptied = !Object.keys(doc.views).length;
  const [row] = await db.writes.write([emptied
    ? { _id: doc._id, _rev: doc._rev, _deleted: true } : doc]);
  if (row.error) {
    throw new HttpError(500, 'error_saving_ddoc',
      'Encountered a conflict while saving the design document.');
  }
  await dropRows(db, index);
  sendJson(res, 200, { ok: true });
}

/** Removes the rows of an index, unless another of the same definition needs them. */
async function dropRows(db, index) {
  const state = buildOf(db, index);
  if (state.task) await state.task.catch(() => {});
  await db.use(async (store) => {
    const left = await listIndexes(db, store);
    if (left.some((other) => other.signature === index.signature)) return;
    db.builds.delete(index.signature);
    await store.writeTexts([{ area: STATE, name: index.signature, value: null }]);
    await store.clear(rowsArea(index));
    await store.clear(keysArea(index));
  });
}

/** A request to /db/_index…. */
async function handleIndex(context) {
  const { req, segments } = context;
  if (segments.length === 2) {
    allow(req, 'GET', 'HEAD', 'POST');
    return req.method === 'POST' ? createIndex(context) : getIndexes(context);
  }
  const parts = segments.slice(2);
  if (parts[0] === '_design') parts.splice(0, 2, `_design/${parts[1]}`);
  if (parts.length !== 3) throw notFound();
  allow(req, 'DELETE');
  if (parts[1] !== 'json') throw notFound();
  return deleteIndex(context, designId(parts[0]), parts[2]);
}

/** GET /db/_design/NAME/_info. */
async function handleDesignInfo({ db, id, req, res }) {
  allow(req, 'GET', 'HEAD');
  const info = await db.use(async (store) => {
    const [winner] = await store.winners([id]);
    if (!winner) throw notFound();
    const { update_seq: updateSeq } = await store.info();
    const indexes = indexesOf(winner.doc);
    let pending = 0;
    for (const index of indexes) {
      pending = Math.max(pending, updateSeq - await builtSeq(store, db, index));
    }
    const running = indexes.some((index) => buildOf(db, index).task !== null);
    return { winner, indexes, pending, running, updateSeq };
  });
  if (info.pending > 0 && !info.running) startBuilding(db);
  const { pending } = info;
  sendJson(res, 200, {
    name: id.slice('_design/'.length),
    view_index: {
      updates_pending: { minimum: pending, preferred: pending, total: pending },
      waiting_commit: false,
      waiting_clients: 0,
      updater_running: pending > 0,
      update_seq: info.updateSeq - pending,
      sizes: { file: 0, external: 0, active: 0 },
      signature: sha1(info.indexes.map((index) => index.signature).join()).slice(0, 32),
      purge_seq: 0,
      language: info.winner.doc.language || 'javascript',
      compact_running: false,
      collator_versions: [],
    },
  });
}

module.exports = {
  bringUpToDate, handleDesignInfo, handleIndex, listIndexes, parseSort, rowsArea,
};
