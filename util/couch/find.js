'use strict';

/*
 * _find and _explain: choosing an index as CouchDB's planner does, and reading from it in pages
 * only as many rows as the answer needs. An index only offers candidates: whether a document
 * belongs to the answer is decided by its selector, on the document itself.
 */

const { HttpError, allow, isObject, readJson, sendJson } = require('./http');
const { compare, sortable } = require('./collation');
const { bringUpToDate, listIndexes, parseSort, rowsArea } = require('./indexes');
const { fieldValue, joinField, matches, normalize, parseField } = require('./selector');
const { conflictsOf } = require('./store');

const DEFAULT_LIMIT = 25;
const FIRST_PAGE = 32;
const MAX_PAGE = 512;
/** Bytes: about a first page. More would be read in vain by most queries. */
const READ_AHEAD = 4096;
const SCAN_WARNING_RATIO = 10;
const LOW_OPERATORS = new Set(['$eq', '$gt', '$gte', '$beginsWith']);
const HIGH_OPERATORS = new Set(['$eq', '$lt', '$lte', '$beginsWith']);

const fail = (error, reason) => new HttpError(400, error, reason);

// ---- the request ----------------------------------------------------------------------------

const OPTIONS = ['selector', 'use_index', 'bookmark', 'limit', 'skip', 'sort', 'fields',
  'partition', 'r', 'conflicts', 'stale', 'update', 'stable', 'execution_stats',
  'allow_fallback'];

function countOption(body, name, otherwise) {
  const value = body[name] === undefined ? otherwise : body[name];
  if (!Number.isInteger(value) || value < 0) {
    throw fail('invalid_non_neg_integer',
      `${JSON.stringify(value)} is not an integer greater than or equal to zero`);
  }
  return value;
}

function flagOption(body, name, otherwise) {
  const value = body[name] === undefined ? otherwise : body[name];
  if (typeof value !== 'boolean') {
    throw fail('invalid_boolean', `Invalid boolean value: ${JSON.stringify(value)}`);
  }
  return value;
}

function fieldsOption(fields = []) {
  if (!Array.isArray(fields)) {
    throw fail('invalid_fields',
      `Fields must be an array of strings, not: ${JSON.stringify(fields)}`);
  }
  return fields.map((field) => {
    if (typeof field === 'string') return parseField(field);
    throw fail('invalid_field', `Invalid JSON for field spec: ${JSON.stringify(field)}`);
  });
}

function useIndexOption(value) {
  if (value === undefined || value === null) return [];
  const parts = typeof value === 'string' ? value.split('/') : value;
  if (typeof value === 'string' && parts.length > 1 && parts[0] === '_design') parts.shift();
  if (!Array.isArray(parts) || parts.length > 2 || !parts.every((p) => typeof p === 'string')) {
    throw fail('invalid_index_name', `Invalid index name: ${JSON.stringify(value)}`);
  }
  return parts.map((part, i) => (i ? part : part.replace(/^_design\//, '')));
}

const invalidBookmark = (text) =>
  fail('invalid_bookmark', `Invalid bookmark value: ${JSON.stringify(text)}`);

/** A bookmark names the index and the key of the last row. */
function bookmarkOption(text) {
  if (text === undefined || text === null || text === '' || text === 'nil') return null;
  try {
    const [ddoc, name, key] = JSON.parse(Buffer.from(text, 'base64url').toString());
    if (typeof key === 'string' && typeof name === 'string') return { ddoc, name, key, text };
  } catch (e) { /* it is none */ }
  throw invalidBookmark(text);
}

function makeBookmark(index, key) {
  return Buffer.from(JSON.stringify([index.ddoc, index.name, key])).toString('base64url');
}

/** Checks the body of _find; everything is 400 that CouchDB refuses. */
function parseFind(body) {
  const unknown = Object.keys(body).find((name) => !OPTIONS.includes(name));
  if (unknown) throw fail('invalid_key', `Invalid key ${unknown} for this request.`);
  if (body.selector === undefined) {
    throw fail('missing_required_key', 'Missing required key: selector');
  }
  return {
    selector: normalize(body.selector),
    useIndex: useIndexOption(body.use_index),
    bookmark: bookmarkOption(body.bookmark),
    limit: countOption(body, 'limit', DEFAULT_LIMIT),
    skip: countOption(body, 'skip', 0),
    sort: parseSort(body.sort === undefined ? [] : body.sort),
    fields: fieldsOption(body.fields),
    conflicts: flagOption(body, 'conflicts', false),
    update: flagOption(body, 'update', true) && body.stale !== 'ok',
    stats: flagOption(body, 'execution_stats', false),
    fallback: flagOption(body, 'allow_fallback', true),
  };
}

// ---- what the selector says of fields -------------------------------------------------------

/** The conditions that every document must meet: the leaves seen through $and. */
function requiredLeaves(node, leaves = []) {
  if (!node) return leaves;
  if (node.op === '$and') node.args.forEach((arg) => requiredLeaves(arg, leaves));
  else if (node.field) leaves.push({ field: joinField(node.field), ...node.cond });
  return leaves;
}

/** The fields that every matching document has. Sees through $or where all sides agree. */
function requiredFields(node) {
  if (!node) return new Set();
  if (node.op === '$and') return new Set(node.args.flatMap((arg) => [...requiredFields(arg)]));
  if (node.op === '$or' && node.args.length) {
    const [first, ...rest] = node.args.map(requiredFields);
    return new Set([...first].filter((field) => rest.every((set) => set.has(field))));
  }
  if (!node.field || (node.cond.op === '$exists' && !node.cond.arg)) return new Set();
  return new Set([joinField(node.field)]);
}

/**
 * The bounds of a field, both included, from the conditions on it.
 * @returns {?{low: *, high: *}} null if no condition says anything that an index can use;
 *   a bound is undefined where there is none
 */
function rangeOf(leaves, field) {
  let range = null;
  for (const { field: name, op, arg } of leaves) {
    const isLow = LOW_OPERATORS.has(op);
    const isHigh = HIGH_OPERATORS.has(op);
    if (name !== field || !(isLow || isHigh || op === '$exists')) continue;
    range = range || { low: undefined, high: undefined };
    if (isLow && (range.low === undefined || compare(arg, range.low) > 0)) range.low = arg;
    if (!isHigh) continue;
    const high = op === '$beginsWith' ? `${arg}\u{10ffff}` : arg;
    if (range.high === undefined || compare(high, range.high) < 0) range.high = high;
  }
  return range;
}

// ---- choosing an index ----------------------------------------------------------------------

const isConstant = (leaves, field) =>
  leaves.some((leaf) => leaf.field === field && leaf.op === '$eq');

/** Columns that are one constant do not change the order, so the sort may begin after them. */
function canSort(columns, sortFields, leaves) {
  if (!sortFields.length) return true;
  for (let at = 0; at < columns.length; at++) {
    if (columns[at] === sortFields[0]) {
      return sortFields.every((field, i) => columns[at + i] === field);
    }
    if (!isConstant(leaves, columns[at])) return false;
  }
  return false;
}

function isUsable(index, request, leaves, required) {
  const sortFields = request.sort.map((item) => item.field);
  if (index.type === 'special') {
    return !sortFields.length
      || (canSort(index.columns, sortFields, []) && rangeOf(leaves, '_id') !== null);
  }
  const needed = index.columns.filter((column) =>
    !sortFields.includes(column) && column !== '_id' && column !== '_rev');
  return needed.every((column) => required.has(column))
    && canSort(index.columns, sortFields, leaves);
}

const isNamed = (index, [ddoc, name]) => index.ddoc === `_design/${ddoc}`
  && (name === undefined || index.name === name);

const noUsableIndex = () => fail('no_usable_index',
  'No index exists for this sort, try indexing by the sort fields.');

function unusableHint(useIndex) {
  const [ddoc, name] = useIndex;
  const what = name === undefined ? `_design/${ddoc}` : `_design/${ddoc}, ${name}`;
  return fail('invalid_index',
    `${what} specified by \`use_index\` could not be found or it is not suitable.`);
}

function candidates(indexes, request, leaves) {
  const required = requiredFields(request.selector);
  const usable = indexes.filter((index) => {
    const hinted = request.useIndex.length > 0 && isNamed(index, request.useIndex);
    return (!index.filter || hinted) && isUsable(index, request, leaves, required);
  });
  if (!usable.length) throw noUsableIndex();
  const named = request.useIndex.length
    ? usable.filter((index) => isNamed(index, request.useIndex)) : [];
  if (named.length) return named;
  if (request.useIndex.length && !request.fallback) throw unusableHint(request.useIndex);
  const json = usable.filter((index) => index.type === 'json');
  return json.length ? json : usable;
}

/** How many columns, from the first, the selector says something of. */
function prefixLength(index, leaves) {
  const free = index.columns.findIndex((column) => rangeOf(leaves, column) === null);
  return free < 0 ? index.columns.length : free;
}

/** The longest prefix wins, then the fewest columns, then the name. */
function byPreference(leaves) {
  const text = (index) => `${index.ddoc}\0${index.name}`;
  return (a, b) => prefixLength(b, leaves) - prefixLength(a, leaves)
    || a.columns.length - b.columns.length
    || (text(a) < text(b) ? -1 : 1);
}

/** The index that serves a request, or 400. */
function chooseIndex(indexes, request) {
  const leaves = requiredLeaves(request.selector);
  const found = candidates(indexes, request, leaves).sort(byPreference(leaves));
  const { bookmark } = request;
  if (!bookmark) return found[0];
  // The next page has to come from where the last one came.
  const before = found.find((index) =>
    index.ddoc === bookmark.ddoc && index.name === bookmark.name);
  if (!before) throw invalidBookmark(bookmark.text);
  return before;
}

// ---- reading --------------------------------------------------------------------------------

/** The range of keys: constants of the first columns, then bounds of the next. */
function keyRange(index, leaves) {
  let prefix = '';
  for (const column of index.columns) {
    const range = rangeOf(leaves, column);
    if (!range) break;
    const { low, high } = range;
    if (low === undefined || high === undefined || compare(low, high) !== 0) {
      return {
        from: prefix + (low === undefined ? '' : sortable(low)),
        to: prefix + (high === undefined ? '' : sortable(high)),
      };
    }
    prefix += sortable(low);
  }
  return { from: prefix, to: prefix };
}

/** The range of ids. A bound that is no string is left to the selector. */
function idRange(leaves) {
  const { low, high } = rangeOf(leaves, '_id') || {};
  return {
    from: typeof low === 'string' ? low : '',
    to: typeof high === 'string' ? high : '',
  };
}

function openCursor(store, index, request, leaves) {
  const range = index.type === 'special' ? idRange(leaves) : keyRange(index, leaves);
  range.reverse = request.sort.length > 0 && request.sort[0].direction === 'desc';
  if (request.bookmark) range[range.reverse ? 'beforeKey' : 'afterKey'] = request.bookmark.key;
  if (index.type === 'special') return store.documents(range);
  return store.cursor(rowsArea(index), { ...range, ahead: READ_AHEAD });
}

/** The documents of a page of rows; null for those gone. */
async function documentsOf(store, index, rows) {
  const winners = index.type === 'special'
    ? await store.winnersOf(rows.map((row) => JSON.parse(row.value)))
    : await store.winners(rows.map((row) => row.value));
  return winners.map((winner) =>
    (winner && !winner.metadata.id.startsWith('_design/') ? winner : null));
}

/** Only these fields of a document. */
function project(doc, paths) {
  if (!paths.length) return doc;
  const result = Object.create(null);
  for (const path of paths) {
    const value = fieldValue(doc, path);
    if (value === undefined) continue;
    let at = result;
    for (const name of path.slice(0, -1)) {
      if (!isObject(at[name])) at[name] = Object.create(null);
      at = at[name];
    }
    at[path[path.length - 1]] = value;
  }
  return result;
}

/** Reads pages of rows, ever larger ones, until the answer is full. */
async function collect(store, index, request) {
  const result = { docs: [], lastKey: null, keys: 0, examined: 0 };
  const cursor = openCursor(store, index, request, requiredLeaves(request.selector));
  let { skip } = request;
  let size = Math.min(MAX_PAGE, Math.max(FIRST_PAGE, skip + request.limit));
  try {
    while (result.docs.length < request.limit && !cursor.done) {
      const rows = await cursor.page(size);
      const winners = await documentsOf(store, index, rows);
      for (let i = 0; i < rows.length && result.docs.length < request.limit; i++) {
        result.keys++;
        if (!winners[i]) continue;
        result.examined++;
        const { doc, metadata } = winners[i];
        const losers = request.conflicts ? conflictsOf(metadata) : [];
        if (losers.length) doc._conflicts = losers;
        if (!matches(request.selector, doc)) continue;
        result.lastKey = rows[i].key;
        if (skip > 0) skip--;
        else result.docs.push(project(doc, request.fields));
      }
      size = Math.min(MAX_PAGE, size * 2);
    }
  } finally {
    await cursor.end();
  }
  return result;
}

// ---- answering ------------------------------------------------------------------------------

function warnings(index, request, result) {
  const list = [];
  const { useIndex } = request;
  if (useIndex.length && !isNamed(index, useIndex)) {
    list.push(useIndex.length === 1
      ? `_design/${useIndex[0]} was not used because it does not contain a valid index for this `
        + 'query.'
      : `_design/${useIndex[0]}, ${useIndex[1]} was not used because it is not a valid index `
        + 'for this query.');
  }
  if (index.type === 'special') {
    list.push('No matching index found, create an index to optimize query time.');
  }
  if (result.examined > SCAN_WARNING_RATIO * Math.max(1, result.docs.length)) {
    list.push('The number of documents examined is high in proportion to the number of results '
      + 'returned. Consider adding a more specific index to improve this.');
  }
  return list.join('\n');
}

/** {"$or": []} and {"$and": []} alone match nothing; beside other conditions, everything. */
const isNoop = (selector) => selector !== null
  && (selector.op === '$and' || selector.op === '$or') && !selector.args.length;

/** POST /db/_find. */
async function handleFind({ db, req, res }) {
  allow(req, 'POST');
  const request = parseFind(await readJson(req, { strictType: true }));
  const started = Date.now();
  const indexes = await db.use((store) => listIndexes(db, store));
  const index = chooseIndex(indexes, request);
  const nothing = { docs: [], lastKey: null, keys: 0, examined: 0 };
  if (index.type === 'json' && request.update) await bringUpToDate(db, index);
  const result = isNoop(request.selector) ? nothing
    : await db.use((store) => collect(store, index, request));
  const answer = { docs: result.docs };
  if (result.lastKey !== null) answer.bookmark = makeBookmark(index, result.lastKey);
  else answer.bookmark = request.bookmark ? request.bookmark.text : 'nil';
  const warning = warnings(index, request, result);
  if (warning) answer.warning = warning;
  if (request.stats) {
    answer.execution_stats = {
      total_keys_examined: result.keys,
      total_docs_examined: result.examined,
      total_quorum_docs_examined: 0,
      results_returned: result.docs.length,
      execution_time_ms: Date.now() - started,
    };
  }
  sendJson(res, 200, answer);
}

/** POST /db/_explain. */
async function handleExplain({ db, req, res }) {
  allow(req, 'POST');
  const body = await readJson(req, { strictType: true });
  const request = parseFind(body);
  const indexes = await db.use((store) => listIndexes(db, store));
  const index = chooseIndex(indexes, request);
  sendJson(res, 200, {
    dbname: db.name,
    index: index.json,
    partitioned: false,
    selector: body.selector,
    opts: { use_index: request.useIndex, bookmark: body.bookmark || 'nil' },
    limit: request.limit,
    skip: request.skip,
    fields: body.fields || [],
  });
}

module.exports = { handleExplain, handleFind };
