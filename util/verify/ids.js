'use strict';

/*
 * Names: DIDs, databases, collections, global ids, as the README has them.
 */

const MAX_DID = 1024;
const MAX_DATABASE = 238;

// DID Core 1.0, 3.1: no path, query or fragment.
const DID = new RegExp('^did:[a-z0-9]+:'
  + '(?:(?:[A-Za-z0-9._-]|%[0-9A-Fa-f]{2})*:)*(?:[A-Za-z0-9._-]|%[0-9A-Fa-f]{2})+$');
const COLLECTION = /^[A-Za-z][A-Za-z0-9_-]{0,63}$/;
const RESERVED = new Set(['global', 'expand', 'query', 'changes']);
const DATABASE = /^[a-z][a-z0-9_$()+/-]*$/;
const HEX = /^(?:[0-9a-f]{2})+$/;
const DESIGN = '_design/';

const isDid = (text) => typeof text === 'string' && text.length <= MAX_DID && DID.test(text);

const isCollection = (text) => COLLECTION.test(text) && !RESERVED.has(text);

const isDatabase = (name) => name.length <= MAX_DATABASE && DATABASE.test(name);

const isDesign = (id) => id.startsWith(DESIGN);

/** Whether this may be a user's database: one of the prefixes and more. */
const isUsers = (name, prefixes) =>
  prefixes.some((prefix) => name.startsWith(prefix) && name.length > prefix.length);

/** The DID that a database's name gives back, else undefined. */
function didOfName(name, prefixes) {
  if (name.length > MAX_DATABASE) return undefined;
  for (const prefix of prefixes) {
    const hex = name.slice(prefix.length);
    if (!name.startsWith(prefix) || !HEX.test(hex)) continue;
    const did = Buffer.from(hex, 'hex').toString('latin1');
    if (isDid(did)) return did;
  }
  return undefined;
}

/** The id of the copy of a document. */
function globalId(did, id) {
  return `${did}:${id.replaceAll('%', '%25').replaceAll(':', '%3A')}`;
}

/**
 * What a global id stands for.
 * @param {string} text
 * @returns {{did: string, id: string} | undefined} undefined: it is none
 */
function splitGlobalId(text) {
  const colon = text.lastIndexOf(':');
  const did = text.slice(0, Math.max(colon, 0));
  const id = text.slice(colon + 1).replaceAll('%3A', ':').replaceAll('%25', '%');
  return id !== '' && isDid(did) && globalId(did, id) === text ? { did, id } : undefined;
}

module.exports = {
  didOfName, globalId, isCollection, isDatabase, isDesign, isDid, isUsers, splitGlobalId,
};
