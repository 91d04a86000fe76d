'use strict';

/*
 * What every handler needs of HTTP: reading a body, answering in JSON, and errors that have
 * CouchDB's shape, {"error":"…","reason":"…"}.
 */

const SERVER = 'vibe-embedded-couch (PouchDB 9)';
const MAX_BODY = 64 * 1024 * 1024;

/** An answer that is an error; thrown anywhere, sent by `sendError`. */
class HttpError extends Error {
  constructor(status, error, reason, headers) {
    super(reason);
    this.status = status;
    this.error = error;
    this.reason = reason;
    this.headers = headers;
  }
}

const badRequest = (reason) => new HttpError(400, 'bad_request', reason);
const notFound = (reason = 'missing') => new HttpError(404, 'not_found', reason);
const conflict = () => new HttpError(409, 'conflict', 'Document update conflict.');
const notImplemented = (what) =>
  new HttpError(501, 'not_implemented', `${what} is not implemented by this embedded server.`);

/** Throws 405 unless the request's method is one of `methods`. */
function allow(req, ...methods) {
  if (methods.includes(req.method)) return;
  const list = methods.join(',');
  throw new HttpError(405, 'method_not_allowed', `Only ${list} allowed`, { Allow: list });
}

function contentType(req) {
  const accept = req.headers.accept || '*/*';
  return /application\/json|application\/\*|\*\/\*/.test(accept)
    ? 'application/json' : 'text/plain; charset=utf-8';
}

/** The headers of every answer, with `more` added. */
function baseHeaders(req, more) {
  return {
    Server: SERVER,
    'Content-Type': contentType(req),
    'Cache-Control': 'must-revalidate',
    ...more,
  };
}

/** Sends bytes as they are. */
function sendBuffer(res, status, buffer, headers) {
  res.writeHead(status, baseHeaders(res.req, { 'Content-Length': buffer.length, ...headers }));
  res.end(res.req.method === 'HEAD' ? undefined : buffer);
}

/** Sends a value as JSON. */
function sendJson(res, status, value, headers) {
  sendBuffer(res, status, Buffer.from(JSON.stringify(value) + '\n'), headers);
}

/** Sends 304, or what `otherwise` does when the client's copy is not the current one. */
function sendUnlessKnown(res, tag, otherwise) {
  const known = String(res.req.headers['if-none-match'] || '').split(/,\s*/).map(unquote);
  if (!known.includes(tag)) return otherwise();
  res.writeHead(304, { Server: SERVER, ETag: `"${tag}"`, 'Cache-Control': 'must-revalidate' });
  res.end();
}

/** Turns anything thrown into an HttpError. Only what nobody foresaw becomes a 500. */
function toHttpError(error) {
  if (error instanceof HttpError) return error;
  if (error instanceof RangeError && /call stack/.test(error.message)) {
    return badRequest('The JSON is nested too deeply.');
  }
  if (error.status >= 400 && error.status < 500) {
    return new HttpError(error.status, error.name || 'bad_request', error.reason || error.message);
  }
  console.error(error);
  return new HttpError(500, 'internal_server_error', String(error.message || error));
}

/** Answers with an error, or cuts the connection when an answer has already begun. */
function sendError(res, error) {
  const e = toHttpError(error);
  if (!res.req.readableEnded) res.req.resume();
  if (res.headersSent) return res.destroy();
  sendJson(res, e.status, { error: e.error, reason: e.reason }, e.headers);
}

/** Reads the whole body, at most MAX_BODY bytes. */
function readBody(req) {
  return new Promise((resolve, reject) => {
    const tooLarge = () => reject(new HttpError(413, 'too_large',
      'the request entity is too large', { Connection: 'close' }));
    if (Number(req.headers['content-length']) > MAX_BODY) return tooLarge();
    const chunks = [];
    let length = 0;
    req.on('data', (chunk) => {
      length += chunk.length;
      if (length <= MAX_BODY) return chunks.push(chunk);
      chunks.length = 0;
      req.removeAllListeners('data');
      tooLarge();
    });
    req.on('end', () => resolve(Buffer.concat(chunks, length)));
    req.on('error', reject);
    req.on('close', () => reject(badRequest('The request ended early.')));
  });
}

function parseJson(buffer) {
  try {
    const text = buffer.toString('utf8');
    // U+FFFD is what invalid UTF-8 becomes, so only a text that holds it needs the strict look.
    if (text.includes('\ufffd')) new TextDecoder('utf-8', { fatal: true }).decode(buffer);
    return JSON.parse(text);
  } catch (e) {
    throw badRequest('invalid UTF-8 JSON');
  }
}

const isObject = (value) =>
  value !== null && typeof value === 'object' && !Array.isArray(value);

/**
 * Reads a JSON object.
 * @param {object} [options]
 * @param {boolean} [options.strictType] answer 415 unless the Content-Type is JSON
 * @param {boolean} [options.orEmpty] an empty body counts as {}
 * @param {string} [options.mustBeObject] the reason given when it is not an object
 * @returns {Promise<object>} the object; `req.bodyLength` is set to the body's size
 */
async function readJson(req, options = {}) {
  if (options.strictType && !/^application\/json/i.test(req.headers['content-type'] || '')) {
    throw new HttpError(415, 'bad_content_type', 'Content-Type must be application/json');
  }
  const buffer = await readBody(req);
  req.bodyLength = buffer.length;
  if (!buffer.length && options.orEmpty) return {};
  const value = parseJson(buffer);
  if (!isObject(value)) {
    throw badRequest(options.mustBeObject || 'Request body must be a JSON object');
  }
  return value;
}

/** A query parameter that is JSON. */
function jsonParam(query, name) {
  if (!query.has(name)) return undefined;
  try {
    return JSON.parse(query.get(name));
  } catch (e) {
    throw new HttpError(400, 'query_parse_error', `Invalid value for ${name}`);
  }
}

/** A query parameter that is a count. */
function intParam(query, name, otherwise) {
  if (!query.has(name)) return otherwise;
  const text = query.get(name);
  if (!/^\d{1,15}$/.test(text)) {
    throw new HttpError(400, 'query_parse_error', `Invalid value for integer: "${text}"`);
  }
  return Number(text);
}

/** A query parameter that is true or not. */
const boolParam = (query, name) => query.get(name) === 'true';

/** An entity tag without its quotes. */
function unquote(tag) {
  return tag === undefined ? undefined : tag.replace(/^(?:W\/)?"(.*)"$/, '$1');
}

module.exports = {
  HttpError,
  allow,
  badRequest,
  baseHeaders,
  boolParam,
  conflict,
  intParam,
  isObject,
  jsonParam,
  notFound,
  notImplemented,
  readBody,
  readJson,
  sendBuffer,
  sendError,
  sendJson,
  sendUnlessKnown,
  toHttpError,
  unquote,
};
