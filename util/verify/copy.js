'use strict';

/*
 * A copy in `global` (README, "What is in global"): what it has to be for its document, what is
 * wrong with one that is there, and its text.
 */

const {
  ACL_VERSION, PRIVATE, accessMembers, accessOf, addToPast, decide, pastMembers, pastOf,
  saysAccess,
} = require('./access');
const { globalId, isCollection, isDesign } = require('./ids');
const { countOf, sameText, splitArray, stringOf } = require('./json');

/** The format of the module's own members, `vibe_v`. */
const FORMAT = 1;
const OWN = 'vibe_';

/** Members that come from the document as they are. */
const isPassedOn = (name) =>
  name[0] !== '_' && !name.startsWith(OWN) && name !== 'collection';

/**
 * The collection of a document: its own member, else what stands before the first "/" of its id.
 * @returns {string | undefined}
 */
function collectionOf(id, doc) {
  if (doc.has('collection')) {
    const own = stringOf(doc.get('collection'));
    return own !== undefined && isCollection(own) ? own : undefined;
  }
  const slash = id.indexOf('/');
  const first = slash < 0 ? '' : id.slice(0, slash);
  return isCollection(first) ? first : undefined;
}

/**
 * @typedef {object} Wanted what `global` has to say of a document
 * @property {string} gid the global id
 * @property {string} did its owner
 * @property {string} db
 * @property {string} rev the document's, '' if there is none
 * @property {string} [collection]
 * @property {import('./access').Access} access private: there is no copy
 * @property {boolean} homeless it would have one, had it a collection
 * @property {[string, string][]} members those that come from the document
 */

/**
 * @param {{db: string, did: string}} owner
 * @param {string} id
 * @param {import('./couch').Row | undefined} source its winner
 * @returns {Wanted}
 */
function wantedFor({ db, did }, id, source) {
  const wanted = {
    gid: globalId(did, id), did, db, rev: source ? source.rev : '', access: PRIVATE,
    homeless: false, members: [],
  };
  if (!source || !source.doc || isDesign(id)) return wanted;
  const access = decide(source.doc, did);
  wanted.collection = collectionOf(id, new Map(source.doc));
  wanted.homeless = wanted.collection === undefined && access.kind !== 'private';
  if (wanted.collection !== undefined) wanted.access = access;
  wanted.members = source.doc.filter(([name]) => isPassedOn(name));
  return wanted;
}

const isWanted = (wanted) => wanted.access.kind !== 'private';

const isNewer = (copy) => countOf(copy.get('vibe_v')) > FORMAT;

const isStub = (copy) => stringOf(copy.get('vibe_access')) === 'none';

/** The other live leaves of a copy. */
const conflictsOf = (copy) =>
  (copy.has('_conflicts') ? splitArray(copy.get('_conflicts')).map(stringOf) : []);

/** What is not as it should be in a copy, by the names of its members. */
function wrongMembers(copy, wanted) {
  const wrong = [];
  const want = (name, value) => {
    if (!sameText(copy.get(name), JSON.stringify(value))) wrong.push(name);
  };
  want('vibe_v', FORMAT);
  want('vibe_acl', ACL_VERSION);
  want('vibe_rev', wanted.rev);
  want('vibe_owner', wanted.did);
  want('vibe_db', wanted.db);
  want('collection', wanted.collection);
  if (!saysAccess(copy, wanted.access)) wrong.push('access');
  const from = new Map(wanted.members);
  for (const [name, text] of from) if (!sameText(copy.get(name), text)) wrong.push(name);
  for (const name of copy.keys()) if (isPassedOn(name) && !from.has(name)) wrong.push(name);
  return wrong;
}

/**
 * @typedef {object} Finding
 * @property {string} kind
 * @property {string} why
 */

const MAX_NAMED = 5;

/** The finding about what has these members wrong. */
function stale(wrong) {
  const more = wrong.length > MAX_NAMED ? ` and ${wrong.length - MAX_NAMED} more` : '';
  return { kind: 'stale', why: `wrong: ${wrong.slice(0, MAX_NAMED).join(', ')}${more}` };
}

/**
 * What is wrong with a place in `global`.
 * @param {Wanted} wanted
 * @param {import('./couch').Row | undefined} row what is there
 * @returns {Finding | undefined} undefined: nothing
 */
function judge(wanted, row) {
  const copy = row && row.doc ? new Map(row.doc) : undefined;
  if (copy && isNewer(copy)) return { kind: 'newer', why: 'its format is a later one' };
  if (!copy) {
    if (!isWanted(wanted)) return undefined;
    return { kind: 'missing', why: row ? 'a tombstone is there' : 'nothing is there' };
  }
  if (isStub(copy)) return { kind: 'stub', why: 'a place-holder was left behind' };
  if (!isWanted(wanted)) {
    return { kind: 'withdrawn', why: wanted.rev ? 'nobody else may read its document'
      : 'there is no such document' };
  }
  const others = conflictsOf(copy).length;
  if (others) return { kind: 'conflict', why: `${others + 1} revisions of it live` };
  const wrong = wrongMembers(copy, wanted);
  if (!wrong.length) return undefined;
  return stale(wrong);
}

/** An object of texts as a text. */
const objectOf = (list) =>
  `{${list.map(([name, text]) => `${JSON.stringify(name)}:${text}`).join(',')}}`;

const string = (name, value) => [name, JSON.stringify(value)];

/** The members that every copy and tombstone begins with. */
function head(gid, rev, past, db) {
  return [
    string('_id', gid),
    ...(rev ? [string('_rev', rev)] : []),
    string('vibe_v', FORMAT),
    ...(db === undefined ? [] : [string('vibe_db', db)]),
    ...pastMembers(past),
  ];
}

/** Those who could read before, and are to be told. */
function pastReaders(old, access) {
  const past = pastOf(old);
  return access.kind === 'public' ? past : addToPast(past, accessOf(old));
}

/**
 * The text of a copy, or of the tombstone where there is to be none.
 * @param {Wanted} wanted
 * @param {Map<string, string>} old the copy or tombstone before it, for its past readers
 * @param {string} [rev] the revision that it replaces
 */
function textOf(wanted, old, rev) {
  return objectOf([
    ...head(wanted.gid, rev, pastReaders(old, wanted.access), wanted.db),
    ...(isWanted(wanted) ? [...wanted.members, ...accessMembers(wanted.access)]
      : [['_deleted', 'true']]),
    ...(wanted.collection === undefined ? [] : [string('collection', wanted.collection)]),
    string('vibe_rev', wanted.rev),
    string('vibe_owner', wanted.did),
    string('vibe_acl', ACL_VERSION),
  ]);
}

/** The text of a stub: it holds the place of a copy, and nobody can read it. */
function stubOf(wanted, old) {
  return objectOf([...head(wanted.gid, undefined, pastReaders(old, wanted.access), wanted.db),
    string('vibe_access', 'none')]);
}

/** The text of a tombstone for what is no copy: it keeps what a tombstone keeps. */
function tombstoneOf(gid, old, rev) {
  const kept = ['collection', 'vibe_rev', 'vibe_owner'];
  const isKept = (name) => stringOf(old.get(name)) !== undefined;
  return objectOf([
    ...head(gid, rev, pastReaders(old, PRIVATE), stringOf(old.get('vibe_db'))),
    ['_deleted', 'true'],
    ...kept.filter(isKept).map((name) => [name, old.get(name)]),
    string('vibe_acl', ACL_VERSION),
  ]);
}

module.exports = {
  FORMAT, collectionOf, conflictsOf, isNewer, isPassedOn, isStub, isWanted, judge, stale, stubOf,
  textOf, tombstoneOf, wantedFor,
};
