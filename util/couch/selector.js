'use strict';

/*
 * Mango selectors, evaluated exactly: the same steps and the same oddities as CouchDB 3.5's
 * mango_selector. A selector is brought into a normal form (explicit operators, field names at
 * the leaves, negations pushed down to the leaves) and then evaluated by plain recursion. Nothing
 * is merged, so no combination of $and, $or, $nor and $not can lose a condition.
 *
 * The normal form:  {op: '$and'|'$or', args: [node…]}
 *                   {op: '$not', arg: node}
 *                   {field: [name…], cond: node}     [] is the value itself
 *                   {op, arg}                        any other operator
 */

const vm = require('vm');
const { HttpError, isObject } = require('./http');
const { compare } = require('./collation');

const MAX_DEPTH = 200;
const LISTS = new Set(['$and', '$or', '$nor']);
const SUB_SELECTORS = new Set(['$elemMatch', '$allMatch', '$keyMapMatch']);
const UNSUPPORTED = new Set(['$where', '$geoWithin', '$geoIntersects', '$near', '$nearSphere',
  '$text']);
const OPPOSITE = {
  $lt: '$gte', $gte: '$lt', $lte: '$gt', $gt: '$lte', $eq: '$ne', $ne: '$eq', $in: '$nin',
  $nin: '$in',
};

const invalid = (error, reason) => new HttpError(400, error, reason);
const badArgument = (op, arg) =>
  invalid('bad_arg', `Bad argument for operator ${op}: ${JSON.stringify(arg)}`);

/** What each operator takes as its argument. */
const ARGUMENTS = {
  $in: Array.isArray,
  $nin: Array.isArray,
  $all: Array.isArray,
  $exists: (arg) => typeof arg === 'boolean',
  $type: (arg) => typeof arg === 'string',
  $beginsWith: (arg) => typeof arg === 'string',
  $mod: (arg) => Array.isArray(arg) && arg.length === 2 && arg.every(Number.isInteger),
  $size: (arg) => Number.isInteger(arg) && arg >= 0,
  $regex: (arg) => typeof arg === 'string' && toRegExp(arg) !== null,
  $lt: () => true,
  $lte: () => true,
  $eq: () => true,
  $ne: () => true,
  $gte: () => true,
  $gt: () => true,
};

/** A regular expression, with PCRE's leading (?i) and the like; null if it is none. */
function toRegExp(source) {
  const match = /^\(\?([ims]+)\)/.exec(source);
  try {
    return match ? new RegExp(source.slice(match[0].length), match[1]) : new RegExp(source);
  } catch (e) {
    return null;
  }
}

/**
 * The names of a dotted field; a backslash keeps a dot.
 * @param {string} field
 * @returns {string[]}
 */
function parseField(field) {
  const names = [''];
  for (let i = 0; i < field.length; i++) {
    if (field[i] === '\\' && i + 1 < field.length) names[names.length - 1] += field[++i];
    else if (field[i] === '.') names.push('');
    else names[names.length - 1] += field[i];
  }
  if (names.includes('')) throw invalid('invalid_field_name', `Invalid field name: ${field}`);
  return names;
}

/** The field's text again. */
const joinField = (names) => names.map((n) => n.replace(/[\\.]/g, '\\$&')).join('.');

// ---- step one: explicit operators -----------------------------------------------------------

function explicit(value, depth) {
  if (depth > MAX_DEPTH) throw invalid('invalid_selector', 'The selector is nested too deeply.');
  if (!isObject(value)) return { op: '$eq', arg: value };
  const names = Object.keys(value);
  if (names.length === 0) return { op: '$eq', arg: value };
  if (names.length === 1) return explicitMember(names[0], value[names[0]], depth + 1);
  return { op: '$and', args: names.map((name) => explicitMember(name, value[name], depth + 1)) };
}

function explicitMember(name, arg, depth) {
  if (name[0] !== '$') return { name, cond: explicit(arg, depth) };
  if (LISTS.has(name)) {
    if (!Array.isArray(arg)) throw badArgument(name, arg);
    return { op: name, args: arg.map((item) => explicit(item, depth)) };
  }
  if (name === '$not' || SUB_SELECTORS.has(name)) {
    if (!isObject(arg)) throw badArgument(name, arg);
    return { op: name, arg: explicit(arg, depth) };
  }
  if (UNSUPPORTED.has(name)) throw invalid('not_supported', `Unsupported operator: ${name}`);
  if (!Object.hasOwn(ARGUMENTS, name)) {
    throw invalid('invalid_operator', `Invalid operator: ${name}`);
  }
  if (!ARGUMENTS[name](arg)) throw badArgument(name, arg);
  return name === '$regex' ? { op: name, arg, regexp: toRegExp(arg) } : { op: name, arg };
}

// ---- step two: field names at the leaves ----------------------------------------------------

function withFields(node, path) {
  if (node.name !== undefined) return withFields(node.cond, path.concat(parseField(node.name)));
  if (LISTS.has(node.op)) {
    return { op: node.op, args: node.args.map((arg) => withFields(arg, path)) };
  }
  if (node.op === '$not') return { op: '$not', arg: withFields(node.arg, path) };
  if (SUB_SELECTORS.has(node.op)) {
    return { field: path, cond: { op: node.op, arg: withFields(node.arg, []) } };
  }
  return { field: path, cond: node };
}

// ---- step three: negations at the leaves ----------------------------------------------------

function sinkNegations(node) {
  if (node.op === '$not') return negate(node.arg);
  if (node.op === '$nor') return { op: '$and', args: node.args.map(negate) };
  if (node.op === '$and' || node.op === '$or') {
    return { op: node.op, args: node.args.map(sinkNegations) };
  }
  // A field's condition is a leaf to CouchDB too: what is inside $elemMatch stays as it is.
  return node;
}

function negate(node) {
  if (node.op === '$not') return sinkNegations(node.arg);
  if (node.op === '$nor') return { op: '$or', args: node.args.map(sinkNegations) };
  if (node.op === '$and') return { op: '$or', args: node.args.map(negate) };
  if (node.op === '$or') return { op: '$and', args: node.args.map(negate) };
  if (node.field) return { field: node.field, cond: negate(node.cond) };
  if (Object.hasOwn(OPPOSITE, node.op)) return { op: OPPOSITE[node.op], arg: node.arg };
  if (node.op === '$exists') return { op: '$exists', arg: !node.arg };
  return { op: '$not', arg: node };
}

/**
 * Brings a selector into its normal form, or throws 400.
 * @param {object} selector
 * @returns {?object} null for {}, which matches everything
 */
function normalize(selector) {
  if (!isObject(selector)) {
    throw invalid('invalid_selector_json',
      `Selector must be a JSON object, not: ${JSON.stringify(selector)}`);
  }
  if (!Object.keys(selector).length) return null;
  const node = sinkNegations(withFields(explicit(selector, 0), []));
  if (node.field && !node.field.length) {
    throw invalid('invalid_selector', 'One or more conditions is missing a field name.');
  }
  return node;
}

// ---- evaluation -----------------------------------------------------------------------------

const NOT_FOUND = Symbol('not found');
const BAD_PATH = Symbol('bad path');

/** The value under a path, NOT_FOUND or BAD_PATH. */
function getField(value, path) {
  for (const name of path) {
    if (Array.isArray(value)) {
      if (!/^\d+$/.test(name) || Number(name) >= value.length) return BAD_PATH;
      value = value[Number(name)];
    } else if (isObject(value)) {
      if (!Object.hasOwn(value, name)) return NOT_FOUND;
      value = value[name];
    } else {
      return BAD_PATH;
    }
  }
  return value;
}

/**
 * The value under a path of field names; undefined if there is none.
 * @param {object} doc
 * @param {string[]} path
 */
function fieldValue(doc, path) {
  const value = getField(doc, path);
  return value === NOT_FOUND || value === BAD_PATH ? undefined : value;
}

function typeOf(value) {
  if (value === null) return 'null';
  return Array.isArray(value) ? 'array' : typeof value;
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function isIn(list, value) {
  const values = Array.isArray(value) ? value : [value];
  return list.some((item) => values.some((v) => compare(v, item) === 0));
}

function hasAll(list, value) {
  if (!list.length || !Array.isArray(value)) return false;
  if (list.every((item) => value.some((v) => same(v, item)))) return true;
  return list.length === 1 && Array.isArray(list[0]) && same(list[0], value);
}

/** Inside $elemMatch and its like CouchDB knows no $nor: there, it makes the whole not match. */
class UnknownInside extends Error {}

function inside(test) {
  try {
    return test();
  } catch (error) {
    if (error instanceof UnknownInside) return false;
    throw error;
  }
}

/** One pattern must not stop everything: this is the only thread. */
const REGEX_TIMEOUT = 250;
const regexContext = vm.createContext({});
const regexTest = new vm.Script('regexp.test(text)');

function bounded(regexp, text) {
  Object.assign(regexContext, { regexp, text });
  try {
    return regexTest.runInContext(regexContext, { timeout: REGEX_TIMEOUT });
  } catch (error) {
    if (error.code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    throw new HttpError(400, 'invalid_operator', 'The $regex takes too long.');
  }
}

const TESTS = {
  $lt: ({ arg }, value) => compare(value, arg) < 0,
  $lte: ({ arg }, value) => compare(value, arg) <= 0,
  $eq: ({ arg }, value) => compare(value, arg) === 0,
  $ne: ({ arg }, value) => compare(value, arg) !== 0,
  $gte: ({ arg }, value) => compare(value, arg) >= 0,
  $gt: ({ arg }, value) => compare(value, arg) > 0,
  $in: ({ arg }, value) => isIn(arg, value),
  $nin: ({ arg }, value) => !isIn(arg, value),
  $all: ({ arg }, value) => hasAll(arg, value),
  $exists: ({ arg }) => arg,   // a value is there; that it is not, matchesField sees
  $type: ({ arg }, value) => typeOf(value) === arg,
  $mod: ({ arg }, value) => Number.isInteger(value) && value % arg[0] === arg[1],
  $size: ({ arg }, value) => Array.isArray(value) && value.length === arg,
  $beginsWith: ({ arg }, value) => typeof value === 'string' && value.startsWith(arg),
  $regex: ({ regexp }, value) => typeof value === 'string' && bounded(regexp, value),
  $elemMatch: ({ arg }, value) => Array.isArray(value)
    && inside(() => value.some((v) => evaluate(arg, v))),
  $allMatch: ({ arg }, value) => Array.isArray(value) && value.length > 0
    && inside(() => value.every((v) => evaluate(arg, v))),
  $keyMapMatch: ({ arg }, value) => isObject(value)
    && inside(() => Object.keys(value).some((name) => evaluate(arg, name))),
  $and: ({ args }, value) => args.every((arg) => evaluate(arg, value)),
  $or: ({ args }, value) => !args.length || args.some((arg) => evaluate(arg, value)),
  $nor: () => { throw new UnknownInside(); },
  $not: ({ arg }, value) => !evaluate(arg, value),
};

function matchesField({ field, cond }, value) {
  const found = getField(value, field);
  if (found === NOT_FOUND) return cond.op === '$exists' && !cond.arg;
  if (found === BAD_PATH) return false;
  return evaluate(cond, found);
}

function evaluate(node, value) {
  return node.field ? matchesField(node, value) : TESTS[node.op](node, value);
}

/**
 * Whether a document matches.
 * @param {?object} selector in its normal form
 * @param {object} doc
 */
function matches(selector, doc) {
  return selector === null || evaluate(selector, doc);
}

module.exports = { fieldValue, joinField, matches, normalize, parseField };
