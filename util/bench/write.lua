-- wrk -s write.lua URL -- KIND DIR RUN: each thread, which has one connection,
-- writes documents of one user, that of its line in DIR/users.  RUN is
-- a word that makes the ids of this run unique.  KIND is
--
--   bare     POST /{db} of CouchDB: into the user's database, then, when that
--            is answered, what the module would write into another one
--   single   POST /{db} of CouchDB into the user's database, nothing else
--   batched  the same, and after each ten of them one _bulk_docs of ten such
--            documents into another database
--   made     POST /data/posts; the module makes the id
--   private  the same without an ACL
--   chosen   the same with a new id
--   updated  the same, each id ten times: nine new versions

local VERSIONS = 10
local BATCH = 10
local TEXT = string.rep("All work and no play. ", 15)

local threads = 0


function setup(thread)
    threads = threads + 1
    thread:set("number", threads)
end


-- Closes the file: wrk cannot use descriptors beyond 3 for each connection.

local function read_line(path, n)
    local file = assert(io.open(path))
    local line

    for _ = 1, n do
        line = file:read()
    end

    file:close()
    return line
end


local function document(before, after, acl)
    return string.format('{%s"title":"A document","createdAt":%d,'
                         .. '"text":"%s","acl":%s%s}',
                         before, os.time() * 1000, TEXT,
                         acl or '{"global":true}', after)
end


local function id(n, run)
    return string.format("posts/%d-%s%08x", os.time() * 1000, run, n)
end


local function source(key)
    return document('"_id":"' .. key .. '",', ',"collection":"posts"')
end


local function copy(did, db, key)
    return document('"_id":"' .. did .. ":" .. key .. '",',
                    ',"vibe_access":"public","collection":"posts"'
                    .. ',"vibe_v":1,"vibe_rev":"1-' .. string.rep("0", 32)
                    .. '","vibe_owner":"' .. did .. '","vibe_db":"' .. db
                    .. '","vibe_acl":1')
end


local function bare(did, db, run)
    local other = db:gsub("^userdb", "bench")
    local n, key = 0, nil

    return function()
        n = n + 1

        if n % 2 == 1 then
            key = id(n, run)
            return wrk.format("POST", "/" .. other, nil, source(key))
        end

        return wrk.format("POST", "/bench-global", nil, copy(did, db, key))
    end
end


local function single(did, db, run, batched)
    local other = db:gsub("^userdb", "bench")
    local n, copies = 0, {}

    return function()
        if batched and #copies == BATCH then
            local docs = '{"docs":[' .. table.concat(copies, ",") .. "]}"

            copies = {}
            return wrk.format("POST", "/bench-global/_bulk_docs", nil, docs)
        end

        n = n + 1

        local key = id(n, run)

        copies[#copies + 1] = batched and copy(did, db, key) or nil
        return wrk.format("POST", "/" .. other, nil, source(key))
    end
end


local function through_module(kind, run)
    local n = 0

    return function()
        local before = ""

        n = n + 1

        if kind == "chosen" then
            before = '"_id":"' .. id(n, run) .. '",'
        elseif kind == "updated" then
            before = '"_id":"posts/' .. run .. "-"
                     .. math.floor((n - 1) / VERSIONS) .. '",'
        end

        return wrk.format("POST", "/data/posts", nil,
                          document(before, "",
                                   kind == "private" and "{}" or nil))
    end
end


function init(args)
    local kind, dir, run = args[1], args[2], args[3]
    local did, db, token = read_line(dir .. "/users", number)
                           :match("(%S+) (%S+) (%S+)")

    wrk.headers["Content-Type"] = "application/json"

    if kind == "bare" or kind == "single" or kind == "batched" then
        wrk.headers["Authorization"] = read_line(dir .. "/basic", 1)
        request = kind == "bare" and bare(did, db, run)
                  or single(did, db, run, kind == "batched")
    else
        wrk.headers["Authorization"] = "Bearer " .. token
        request = through_module(kind, run)
    end
end
