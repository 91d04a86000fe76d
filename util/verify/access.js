'use strict';

/*
 * Who may read a document (README, "Access rules"), and who could once.
 */

const { depthOf, isArray, isObject, splitArray, splitObject, stringOf, members } =
  require('./json');
const { isDid } = require('./ids');

/** The version of these rules, `vibe_acl`. */
const ACL_VERSION = 1;
const MAX_RULES = 500;
const MAX_PAST = 500;
const MAX_DEPTH = 100;

/**
 * @typedef {object} Access
 * @property {'public'|'restricted'|'private'} kind
 * @property {boolean} all restricted: everyone may read but `deny`
 * @property {string[]} read restricted: these DIDs may read
 * @property {string[]} deny
 */

const PRIVATE = Object.freeze({ kind: 'private', all: false, read: [], deny: [] });
const PUBLIC = Object.freeze({ kind: 'public', all: true, read: [], deny: [] });

/** Thrown where an ACL cannot be understood: it is private then. */
class NotUnderstood extends Error {}

/** JSON can write halves of characters, which are no text. */
function hasLoneSurrogate(text) {
  if (!/\\u[dD]/.test(text)) return false;
  return /(?:^|[^\\])(?:\\\\)*\\ud[89a-f]/.test(JSON.stringify(JSON.parse(text)));
}

/** The only member of this name, undefined if there is none. */
function single(list, name) {
  const found = list.filter((member) => member[0] === name);
  if (found.length > 1) throw new NotUnderstood();
  return found.length ? found[0][1] : undefined;
}

/** Whom a single rule matches: `{all}` everybody, `{did}` one or, without, nobody. */
function readTerm(text, deny) {
  if (text[0] === '"') {
    const did = stringOf(text);
    if (did === '*') return { all: true };
    if (!isDid(did)) throw new NotUnderstood();
    return { all: false, did };
  }
  if (!isObject(text)) throw new NotUnderstood();
  // A certificate, which cannot be checked.
  const certificate = splitObject(text);
  const known = members(text);
  if (certificate.length !== 2 || stringOf(known.get('issuer')) === undefined
      || stringOf(known.get('type')) === undefined) {
    throw new NotUnderstood();
  }
  return { all: deny };
}

/** Whom a rule matches, which may be an array of rules that must all match. */
function readRule(text, deny) {
  if (!isArray(text)) return readTerm(text, deny);
  const terms = splitArray(text).map((term) => readTerm(term, deny));
  if (!terms.length) throw new NotUnderstood();
  const narrow = terms.filter((term) => !term.all);
  if (!narrow.length) return { all: true };
  const same = narrow.every((term) => term.did === narrow[0].did);
  return { all: false, did: same ? narrow[0].did : undefined };
}

/** The rules of `allow` or of `deny`: how many, whether for everybody, and for whom. */
function readRules(text, deny) {
  if (text === undefined) return { count: 0, all: false, dids: [] };
  if (!isArray(text)) throw new NotUnderstood();
  const texts = splitArray(text);
  if (texts.length > MAX_RULES) throw new NotUnderstood();
  const rules = texts.map((rule) => readRule(rule, deny));
  return {
    count: rules.length,
    all: rules.some((rule) => rule.all),
    dids: rules.map((rule) => rule.did).filter((did) => did !== undefined),
  };
}

function readAcl(text, owner) {
  if (!isObject(text) || depthOf(text) > MAX_DEPTH || hasLoneSurrogate(text)) {
    throw new NotUnderstood();
  }
  const acl = splitObject(text);
  const global = single(acl, 'global');
  const read = single(acl, 'read');
  if (acl.some(([name]) => name === 'allow' || name === 'deny')) throw new NotUnderstood();
  if (global !== undefined && global !== 'true' && global !== 'false') throw new NotUnderstood();
  if (read !== undefined && !isObject(read)) throw new NotUnderstood();
  const lists = read === undefined ? [] : splitObject(read);
  if (lists.some(([name]) => name !== 'allow' && name !== 'deny')) throw new NotUnderstood();
  const allow = readRules(single(lists, 'allow'), false);
  const deny = readRules(single(lists, 'deny'), true);
  if (allow.count + deny.count > MAX_RULES) throw new NotUnderstood();

  if (deny.all) return PRIVATE;
  if (allow.all || global === 'true') {
    return deny.count ? { kind: 'restricted', all: true, read: [], deny: deny.dids } : PUBLIC;
  }
  const readers = allow.dids.filter((did) => did !== owner && !deny.dids.includes(did));
  return readers.length ? { kind: 'restricted', all: false, read: readers, deny: [] } : PRIVATE;
}

/**
 * Decides who may read a document.
 * @param {[string, string][]} doc its members, as splitObject() gives them
 * @param {string} owner the DID of its owner
 * @returns {Access}
 */
function decide(doc, owner) {
  try {
    const acl = single(doc, 'acl');
    return acl === undefined ? PRIVATE : readAcl(acl, owner);
  } catch (error) {
    if (error instanceof NotUnderstood) return PRIVATE;
    throw error;
  }
}

/** A list of DIDs and "*" out of a copy; undefined where it is something else. */
function listOf(text) {
  if (!isArray(text)) return undefined;
  const list = splitArray(text).map(stringOf);
  if (list.includes(undefined)) return undefined;
  return { all: list.includes('*'), dids: list.filter((did) => did !== '*') };
}

/**
 * The access that a copy gives.
 * @param {Map<string, string>} copy
 * @returns {Access}
 */
function accessOf(copy) {
  const kind = stringOf(copy.get('vibe_access'));
  if (kind === 'public') return PUBLIC;
  if (kind !== 'restricted') return PRIVATE;
  const read = listOf(copy.get('vibe_read'));
  const deny = listOf(copy.get('vibe_deny'));
  if (!read || !deny || deny.all) return PRIVATE;
  return { kind, all: read.all, read: read.dids, deny: deny.dids };
}

/** The members of a copy that say who may read it: name and text. */
function accessMembers(access) {
  const kind = ['vibe_access', JSON.stringify(access.kind)];
  if (access.kind === 'public') return [kind];
  return [kind, ['vibe_read', JSON.stringify(access.all ? ['*'] : access.read)],
    ['vibe_deny', JSON.stringify(access.deny)]];
}

const sameDids = (a, b) => {
  const [left, right] = [new Set(a), new Set(b)];
  return left.size === right.size && [...left].every((did) => right.has(did));
};

/** Whether a copy says exactly this, in whatever order. */
function saysAccess(copy, access) {
  const found = accessOf(copy);
  if (found.kind !== access.kind || found.all !== access.all) return false;
  if (access.kind === 'public') return !copy.has('vibe_read') && !copy.has('vibe_deny');
  return sameDids(found.read, access.read) && sameDids(found.deny, access.deny);
}

/**
 * Who could read earlier copies: `read`; or, with `all`, everyone but `never`.
 * @param {Map<string, string>} copy a copy or tombstone
 */
function pastOf(copy) {
  const past = listOf(copy.get('vibe_past'));
  const never = listOf(copy.get('vibe_never'));
  return { all: past?.all ?? false, read: past?.dids ?? [], never: never?.dids ?? [] };
}

/** These and those whom `access` lets read: it only grows. */
function addToPast(past, access) {
  if (access.kind === 'private') return past;
  if (access.all) {
    // Denied now and then.
    const denied = (did) => (past.all ? past.never.includes(did) : !past.read.includes(did));
    return { all: true, read: [], never: access.deny.filter(denied) };
  }
  if (past.all) {
    return { ...past, never: past.never.filter((did) => !access.read.includes(did)) };
  }
  const read = [...new Set([...past.read, ...access.read])];
  return { ...past, read: read.slice(0, Math.max(MAX_PAST, past.read.length)) };
}

/** The members of a copy that say who could: name and text. */
function pastMembers(past) {
  if (!past.all && !past.read.length) return [];
  const list = [['vibe_past', JSON.stringify(past.all ? ['*'] : past.read)]];
  if (past.never.length) list.push(['vibe_never', JSON.stringify(past.never)]);
  return list;
}

module.exports = {
  ACL_VERSION, PRIVATE, accessMembers, accessOf, addToPast, decide, pastMembers, pastOf,
  saysAccess,
};
