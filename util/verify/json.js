'use strict';

/*
 * JSON, taken apart into pieces of its text. JSON.parse would round numbers beyond 2^53, and "1.0"
 * would become "1": what is compared and written here are the texts of members as CouchDB sent
 * them. The texts are CouchDB's own, so what is looked for is where each value ends.
 */

const SPACE = /[ \t\r\n]*/y;
const BRACKET = /["[\]{}]/g;
const SCALAR = /-?\d[\d.eE+-]*|true|false|null/y;

/** Where an expression matches at this place, the place behind it. */
function behind(expression, text, at) {
  expression.lastIndex = at;
  return expression.test(text) ? expression.lastIndex : at;
}

const skipSpace = (text, at) => behind(SPACE, text, at);

function unexpected(at) {
  return new SyntaxError(`not JSON at character ${at}`);
}

/** The place behind the string that begins here. */
function endOfString(text, at) {
  for (let end = text.indexOf('"', at + 1); end > 0; end = text.indexOf('"', end + 1)) {
    let slashes = 0;
    while (text[end - 1 - slashes] === '\\') slashes++;
    if (slashes % 2 === 0) return end + 1;
  }
  throw unexpected(at);
}

/** The place behind the array or object that begins here. */
function endOfContainer(text, at) {
  let depth = 0;
  BRACKET.lastIndex = at;
  for (let match = BRACKET.exec(text); match; match = BRACKET.exec(text)) {
    if (match[0] === '"') BRACKET.lastIndex = endOfString(text, match.index);
    else depth += match[0] === '[' || match[0] === '{' ? 1 : -1;
    if (depth === 0) return match.index + 1;
  }
  throw unexpected(at);
}

function endOfValue(text, at) {
  if (text[at] === '"') return endOfString(text, at);
  if (text[at] === '{' || text[at] === '[') return endOfContainer(text, at);
  const end = behind(SCALAR, text, at);
  if (end === at) throw unexpected(at);
  return end;
}

/** Calls `take(text, at)`, which returns the place behind it, for each piece of a container. */
function forEachPiece(text, open, close, take) {
  let at = skipSpace(text, 0);
  if (text[at] !== open) throw unexpected(at);
  at = skipSpace(text, at + 1);
  if (text[at] !== close) {
    for (;;) {
      at = skipSpace(text, take(at));
      if (text[at] === close) break;
      if (text[at] !== ',') throw unexpected(at);
      at = skipSpace(text, at + 1);
    }
  }
  at = skipSpace(text, at + 1);
  if (at !== text.length) throw unexpected(at);
}

/**
 * The members of an object, in order.
 * @param {string} text
 * @returns {[string, string][]} names, and the texts of the values
 */
function splitObject(text) {
  const members = [];
  forEachPiece(text, '{', '}', (at) => {
    if (text[at] !== '"') throw unexpected(at);
    const nameEnd = endOfString(text, at);
    const name = JSON.parse(text.slice(at, nameEnd));
    const colon = skipSpace(text, nameEnd);
    if (text[colon] !== ':') throw unexpected(colon);
    const start = skipSpace(text, colon + 1);
    const end = endOfValue(text, start);
    members.push([name, text.slice(start, end)]);
    return end;
  });
  return members;
}

/** The texts of an array's elements. */
function splitArray(text) {
  const elements = [];
  forEachPiece(text, '[', ']', (at) => {
    const end = endOfValue(text, at);
    elements.push(text.slice(at, end));
    return end;
  });
  return elements;
}

/** An object's members by name; of one that is repeated CouchDB takes the last, and so do we. */
const members = (text) => new Map(splitObject(text));

const isObject = (text) => text !== undefined && text[0] === '{';
const isArray = (text) => text !== undefined && text[0] === '[';

/** The value of a text that is a string, else undefined. */
const stringOf = (text) => (text !== undefined && text[0] === '"' ? JSON.parse(text) : undefined);

/** The value of a text that is a number written in digits only, else undefined. */
const countOf = (text) => (/^\d+$/.test(text) ? Number(text) : undefined);

/** How deep arrays and objects nest in a text. */
function depthOf(text) {
  let depth = 0;
  let deepest = 0;
  BRACKET.lastIndex = 0;
  for (let match = BRACKET.exec(text); match; match = BRACKET.exec(text)) {
    if (match[0] === '"') BRACKET.lastIndex = endOfString(text, match.index);
    else depth += match[0] === '[' || match[0] === '{' ? 1 : -1;
    deepest = Math.max(deepest, depth);
  }
  return deepest;
}

/**
 * Whether two texts say the same: numbers digit for digit, strings however they are escaped,
 * objects in any order. Most pairs that get here have the very same text.
 */
function sameText(a, b) {
  if (a === b) return true;
  if (a === undefined || b === undefined || a[0] !== b[0]) return false;
  if (a[0] === '"') return stringOf(a) === stringOf(b);
  if (a[0] === '[') {
    const [left, right] = [splitArray(a), splitArray(b)];
    return left.length === right.length && left.every((item, i) => sameText(item, right[i]));
  }
  if (a[0] !== '{') return false;
  const [left, right] = [members(a), members(b)];
  return left.size === right.size
    && [...left].every(([name, value]) => sameText(value, right.get(name)));
}

module.exports = {
  countOf, depthOf, isArray, isObject, members, sameText, splitArray, splitObject, stringOf,
};
