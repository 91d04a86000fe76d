'use strict';

/*
 * The order of JSON values: null, false, true, numbers, strings, arrays, objects. Strings by code
 * point, where CouchDB asks ICU: the order of the stored keys of an index has to be the same, and
 * that is an order of bytes.
 */

const { collate, toIndexableString } = require('pouchdb-collate');

function compareStrings(a, b) {
  const length = Math.min(a.length, b.length);
  let i = 0;
  while (i < length && a.charCodeAt(i) === b.charCodeAt(i)) i++;
  if (i === length) return a.length - b.length;
  const x = a.charCodeAt(i);
  const y = b.charCodeAt(i);
  // A surrogate stands for a code point above all that are written with one unit.
  const high = (unit) => unit >= 0xd800 && unit <= 0xdfff;
  if (high(x) !== high(y)) return high(x) ? 1 : -1;
  return x - y;
}

/**
 * Compares two JSON values.
 * @returns {number} below, at or above zero
 */
function compare(a, b) {
  if (a === b) return 0;
  if (typeof a === 'string' && typeof b === 'string') return compareStrings(a, b);
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return collate(a, b);
}

/** Text whose byte order is the order of the values. No such text is the beginning of another. */
const sortable = (value) => toIndexableString(value);

module.exports = { compare, sortable };
