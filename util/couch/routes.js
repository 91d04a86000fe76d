'use strict';

/*
 * From a request to its handler. What is not in these tables is answered with 501 where CouchDB
 * has it, else with 404 or 405.
 */

const {
  allow, badRequest, boolParam, HttpError, intParam, jsonParam, notFound, notImplemented,
  readBody, readJson, sendJson,
} = require('./http');
const { handleAllDocs, handleBulkDocs, handleBulkGet, handleRevsDiff } = require('./bulk');
const { handleChanges } = require('./changes');
const { handleAttachment, handleDocument, postDocument } = require('./documents');
const { handleExplain, handleFind } = require('./find');
const { handleDesignInfo, handleIndex } = require('./indexes');
const { formatSeq } = require('./sequences');
const { handleDbUpdates } = require('./updates');
const { version } = require('./package.json');

const MAX_DBS_INFO = 100;
const DEFAULT_SECURITY = {
  members: { roles: ['_admin'] }, admins: { roles: ['_admin'] },
};

// ---- the server -----------------------------------------------------------------------------

function handleRoot({ databases, req, res }) {
  allow(req, 'GET', 'HEAD');
  sendJson(res, 200, {
    couchdb: 'Welcome',
    version: `${version}-embedded`,
    uuid: databases.uuid,
    features: [],
    vendor: { name: 'vibe embedded server over PouchDB 9 (not Apache CouchDB)' },
  });
}

function handleUp({ req, res }) {
  allow(req, 'GET', 'HEAD');
  sendJson(res, 200, { status: 'ok', seeds: {} });
}

function handleAllDbs({ databases, query, req, res }) {
  allow(req, 'GET', 'HEAD');
  const param = (...names) => names.map((n) => jsonParam(query, n)).find((v) => v !== undefined);
  const start = param('startkey', 'start_key');
  const end = param('endkey', 'end_key');
  const sign = boolParam(query, 'descending') ? -1 : 1;
  const order = (a, b) => (a < b ? -sign : a > b ? sign : 0);
  const last = query.get('inclusive_end') === 'false' ? -1 : 0;
  const names = databases.names().sort(order)
    .filter((name) => start === undefined || order(name, start) >= 0)
    .filter((name) => end === undefined || order(name, end) <= last);
  const skip = intParam(query, 'skip', 0);
  sendJson(res, 200, names.slice(skip, skip + intParam(query, 'limit', names.length)));
}

async function databaseInfo(db) {
  const info = await db.info();
  return {
    // CouchDB tells when it was made; what matters is that a new one tells something else.
    instance_start_time: String(parseInt(db.identity.slice(0, 12), 16)),
    db_name: db.name,
    purge_seq: `0-g1AAAA${db.identity}`,
    update_seq: formatSeq(db, info.update_seq),
    sizes: { file: 0, external: 0, active: 0 },
    props: {},
    doc_del_count: 0,
    doc_count: info.doc_count,
    disk_format_version: 8,
    compact_running: false,
    cluster: { q: 1, n: 1, w: 1, r: 1 },
  };
}

async function handleDbsInfo({ databases, req, res }) {
  allow(req, 'GET', 'HEAD', 'POST');
  const { keys } = req.method === 'POST'
    ? await readJson(req, { strictType: true }) : { keys: databases.names() };
  if (!Array.isArray(keys)) throw badRequest('`keys` member must exist.');
  if (req.method === 'POST' && keys.length > MAX_DBS_INFO) throw badRequest('too_many_keys');
  const rows = [];
  for (const key of keys) {
    const db = databases.find(key);
    const info = db && await databaseInfo(db).catch(() => null);
    rows.push(info ? { key, info } : { key, error: 'not_found' });
  }
  sendJson(res, 200, rows);
}

const SERVER_HANDLERS = {
  '': handleRoot,
  _up: handleUp,
  _all_dbs: handleAllDbs,
  _dbs_info: handleDbsInfo,
  _db_updates: handleDbUpdates,
};
const OPEN = new Set(['', '_up']);
const SERVER_UNIMPLEMENTED = new Set(['_active_tasks', '_cluster_setup', '_membership', '_node',
  '_replicate', '_reshard', '_scheduler', '_search_analyze', '_session', '_utils', '_uuids']);

// ---- a database -----------------------------------------------------------------------------

async function handleDatabase(context) {
  const { databases, name, query, req, res } = context;
  if (req.method === 'PUT') {
    await readBody(req);
    await databases.create(name);
    const host = req.headers.host || 'localhost';
    const Location = `http://${host}/${encodeURIComponent(name)}`;
    return sendJson(res, 201, { ok: true }, { Location });
  }
  const db = databases.get(name);
  if (req.method === 'GET' || req.method === 'HEAD') {
    return sendJson(res, 200, await databaseInfo(db));
  }
  if (req.method === 'POST') return postDocument({ ...context, db });
  allow(req, 'DELETE', 'GET', 'HEAD', 'POST', 'PUT');
  if (query.has('rev')) {
    throw badRequest('You tried to DELETE a database with a ?=rev parameter. '
      + 'Did you mean to DELETE a document instead?');
  }
  await databases.remove(name);
  sendJson(res, 200, { ok: true });
}

async function handleSecurity({ db, req, res }) {
  allow(req, 'GET', 'HEAD', 'PUT');
  if (req.method === 'PUT') {
    const security = await readJson(req);
    await db.use((store) => store.putMeta('security', security));
    return sendJson(res, 200, { ok: true });
  }
  const security = await db.use((store) => store.getMeta('security'));
  sendJson(res, 200, security || DEFAULT_SECURITY);
}

async function handleRevsLimit({ databases, db, req, res }) {
  allow(req, 'GET', 'HEAD', 'PUT');
  if (req.method !== 'PUT') {
    return sendJson(res, 200, await db.use((store) => store.revsLimit()));
  }
  const limit = Number((await readBody(req)).toString());
  if (!Number.isInteger(limit) || limit < 1) {
    throw badRequest('`_revs_limit` must be a positive integer.');
  }
  await db.use((store) => store.putRevsLimit(limit));
  await databases.reopen(db);
  sendJson(res, 200, { ok: true });
}

const DATABASE_HANDLERS = {
  _all_docs: handleAllDocs,
  _bulk_docs: handleBulkDocs,
  _bulk_get: handleBulkGet,
  _changes: handleChanges,
  _explain: handleExplain,
  _find: handleFind,
  _index: handleIndex,
  _revs_diff: handleRevsDiff,
  _revs_limit: handleRevsLimit,
  _security: handleSecurity,
};
const DATABASE_UNIMPLEMENTED = new Set(['_auto_purge', '_compact', '_design_docs',
  '_ensure_full_commit', '_local_docs', '_missing_revs', '_nouveau_cleanup', '_partition',
  '_purge', '_purged_infos', '_purged_infos_limit', '_search_cleanup', '_shards', '_sync_shards',
  '_temp_view', '_view_cleanup']);

function handleInside(context) {
  const { segments, req } = context;
  const part = segments[1];
  if (Object.hasOwn(DATABASE_HANDLERS, part)) {
    if (segments.length > 2 && part !== '_index') throw notImplemented(req.url);
    return DATABASE_HANDLERS[part](context);
  }
  if (DATABASE_UNIMPLEMENTED.has(part)) throw notImplemented(part);
  const named = part === '_design' || part === '_local';
  if (part[0] === '_' && !named && !part.startsWith('_design/') && !part.startsWith('_local/')) {
    if (req.method !== 'PUT') throw notFound();
    throw new HttpError(400, 'illegal_docid',
      'Only reserved document ids may start with underscore.');
  }
  const id = named ? segments.slice(1, 3).join('/') : part;
  const rest = segments.slice(named ? 3 : 2);
  if (req.method === 'COPY') throw notImplemented('COPY');
  if (!rest.length) return handleDocument({ ...context, id });
  if (!id.startsWith('_design/') || rest[0][0] !== '_') {
    return handleAttachment({ ...context, id, attachment: rest.join('/') });
  }
  if (rest[0] === '_info') return handleDesignInfo({ ...context, id });
  throw notImplemented(rest[0]);
}

// ---- all ------------------------------------------------------------------------------------

function parseUrl(url) {
  const [path, search = ''] = url.split(/\?(.*)/s);
  try {
    const segments = path.replace(/^https?:\/\/[^/]*/i, '').split('/').slice(1)
      .map(decodeURIComponent);
    while (segments.length > 1 && segments[segments.length - 1] === '') segments.pop();
    return { segments, query: new URLSearchParams(search) };
  } catch (e) {
    throw badRequest('malformed URL');
  }
}

/**
 * Makes the function that answers requests.
 * @param {import('./databases').Databases} databases
 * @param {function} authenticate throws 401
 * @returns {function(req, res): Promise<void>}
 */
function router(databases, authenticate) {
  return async function route(req, res) {
    const { segments, query } = parseUrl(req.url);
    const name = segments[0] || '';
    if (!OPEN.has(name)) authenticate(req);
    const context = { databases, segments, query, name, req, res };
    if (Object.hasOwn(SERVER_HANDLERS, name)) return SERVER_HANDLERS[name](context);
    if (SERVER_UNIMPLEMENTED.has(name)) throw notImplemented(name);
    if (segments.length === 1) return handleDatabase(context);
    return handleInside({ ...context, db: databases.get(name) });
  };
}

module.exports = { router };
