-- wrk -s post.lua URL -- BODY HEADERS: posts the file BODY, over and over, with
-- the headers of the file HEADERS, one "Name: value" a line.

local function read(path)
    local file = assert(io.open(path))
    local text = file:read("*a")

    file:close()
    return text
end


function init(args)
    wrk.method = "POST"
    wrk.body = read(args[1])
    wrk.headers["Content-Type"] = "application/json"

    for name, value in read(args[2]):gmatch("([^:\n]+): ([^\n]*)") do
        wrk.headers[name] = value
    end
end
