'use strict';

// Taibai's shim for Node.js: what runs in each slot of a worker.
//
// The supervisor starts this program once for each slot, as that slot's user and under its limits. It
// serves one execution after another. The messages are described in runtimes/README.md.
//
// Between executions it waits in a read that stops the event loop, so nothing that a function has
// started goes on while no execution runs. What would go on in the next one is told to the
// supervisor, which then ends this process.

// What the shim works with, taken before a function can change any of it.
const fs = require('fs');
const https = require('https');
const path = require('path');
const tls = require('tls');
const { Writable } = require('stream');
const { pathToFileURL } = require('url');
const v8 = require('v8');
const vm = require('vm');
// Loaded ahead for functions, which then start sooner.
require('child_process');
require('crypto');
require('events');
require('os');
require('zlib');

const { chmodSync, lstatSync, mkdirSync, readFileSync, readSync, readdirSync, rmSync, statSync, writeSync } = fs;
const { parse, stringify } = JSON;
const { from: bufferFrom, allocUnsafe, concat, byteLength } = Buffer;
const { wait } = Atomics;
const chdir = process.chdir.bind(process);
const exit = process.reallyExit.bind(process);
const activeResources = process.getActiveResourcesInfo.bind(process);
const hrtime = process.hrtime.bigint.bind(process.hrtime);
const nextTurn = setImmediate;
const PlainError = Error;
const PlainPromise = Promise;
const { hasOwn } = Object;
const heapStatistics = v8.getHeapStatistics;

const VERSION = 2;
const CONTROL_FD = 3;
const PACKAGE = process.env.TAIBAI_PACKAGE;
const SCRATCH = process.env.TAIBAI_SCRATCH;
const WORK = path.join(SCRATCH, 'work');
const MAX_MESSAGE = 4096;
const NEVER_SETTLED = "The function's promise is never settled: nothing is left that it could wait for";
// A function that is done may have to close what it used; this long, in nanoseconds, it is waited for.
const GRACE = 20_000_000n;
// Garbage beyond this, in bytes, is collected before an execution ends: what it keeps is looked at then.
const MAX_GARBAGE = 2 << 20;

// --- frames ---------------------------------------------------------------------------------------

const sleeper = new Int32Array(new SharedArrayBuffer(4));

// Writes all of it, also where a child process has made the descriptor one that does not wait.
function writeAll(descriptor, data) {
    for (let at = 0; at < data.length; ) {
        try {
            at += writeSync(descriptor, data, at);
        } catch (error) {
            if (error.code !== 'EAGAIN') throw error;
            wait(sleeper, 0, 0, 1);
        }
    }
}

// `count` bytes, or null where the supervisor has gone.
function receiveExactly(count) {
    const bytes = allocUnsafe(count);
    for (let at = 0; at < count; ) {
        const read = readSync(CONTROL_FD, bytes, at, count - at, null);
        if (read === 0) return null;
        at += read;
    }
    return bytes;
}

function receive() {
    const head = receiveExactly(4);
    const body = head && receiveExactly(head.readUInt32BE(0));
    if (body === null) exit(0);
    return parse(body.toString('utf8')).run;
}

function sendRaw(body) {
    const head = allocUnsafe(4);
    head.writeUInt32BE(body.length, 0);
    writeAll(CONTROL_FD, concat([head, body]));
}

function send(name, content) {
    sendRaw(bufferFrom(stringify({ [name]: content })));
}

// --- the log --------------------------------------------------------------------------------------

// Node's own streams for a pipe queue what it does not take at once, which would be missing from the
// log of an execution that ends.
function output(descriptor) {
    const stream = new Writable({
        decodeStrings: true,
        write(chunk, encoding, done) {
            try {
                writeAll(descriptor, chunk);
                done();
            } catch (error) {
                done(error);
            }
        },
    });
    stream.fd = descriptor;
    stream._type = 'pipe';
    stream._isStdio = true;
    // Like Node's own it is never closed.
    stream.destroySoon = stream.destroy;
    stream._destroy = (error, done) => done(error);
    // A function that has closed its output writes to nobody.
    stream.on('error', () => {});
    return stream;
}

for (const [name, descriptor] of [['stdout', 1], ['stderr', 2]]) {
    const stream = output(descriptor);
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => stream });
}

function log(text) {
    try {
        writeAll(2, bufferFrom(text));
    } catch {
        // It has closed its output.
    }
}

// --- what is thrown -------------------------------------------------------------------------------

// The text of what was thrown, which can be anything, a function's own code included.
function describe(error) {
    let text;
    try {
        text = error instanceof PlainError || typeof error?.message === 'string' ? error.message || error.name : error;
        text = String(text);
    } catch {
        text = '<an error that has no text>';
    }
    // Whoever requires a module is no news where it is the shim, and a lone surrogate no text for anyone else.
    return bufferFrom(text.split(`\n- ${__filename}`).join('')).toString().slice(0, MAX_MESSAGE);
}

// The function's part of a stack, as the log shows it.
function trace(error) {
    try {
        if (typeof error?.stack === 'string') {
            const lines = error.stack.split('\n');
            return lines.filter((line) => !line.includes(__filename)).join('\n');
        }
    } catch {
        // Its text will do.
    }
    return `Uncaught ${describe(error)}`;
}

// What the system refuses a function for want of resources ends the same way as being killed.
function isExhaustion(error) {
    try {
        return (
            ['EAGAIN', 'ENOMEM', 'ERR_WORKER_OUT_OF_MEMORY'].includes(error?.code) ||
            (error instanceof RangeError && error.message === 'Array buffer allocation failed')
        );
    } catch {
        return false;
    }
}

const LIMITS = {
    EAGAIN: 'processes',
    ERR_WORKER_INIT_FAILED: 'processes',
    EMFILE: 'open_files',
    EFBIG: 'file_bytes',
    ENOSPC: 'scratch_bytes',
};

// The limit that an error speaks of, or undefined.
function limitOf(error) {
    try {
        const limit = hasOwn(LIMITS, error?.code) ? LIMITS[error.code] : undefined;
        return limit ?? (isExhaustion(error) ? 'memory' : undefined);
    } catch {
        return undefined;
    }
}

class Missing extends PlainError {}

// --- the function ---------------------------------------------------------------------------------

function isFile(name) {
    try {
        return statSync(name).isFile();
    } catch {
        return false;
    }
}

// Loads a module of the package, however it is written.
async function load(name) {
    const base = path.join(PACKAGE, name);
    let file;
    try {
        file = require.resolve(base);
    } catch {
        file = ['.cjs', '.mjs'].map((ending) => base + ending).find(isFile);
        if (file === undefined) throw new Missing(`No module named '${name}'`);
    }
    if (!file.endsWith('.mjs')) {
        try {
            return require(file);
        } catch (error) {
            // A package.json beside it says that it is an ES module.
            if (error?.code !== 'ERR_REQUIRE_ESM') throw error;
        }
    }
    return import(pathToFileURL(file).href);
}

const handlers = new Map();

async function find(entry, nonce) {
    let handler = handlers.get(entry);
    if (handler === undefined) {
        const dot = entry.lastIndexOf('.');
        const [name, key] = dot < 0 ? [entry, 'main'] : [entry.slice(0, dot), entry.slice(dot + 1)];
        const module = await load(name);
        // Of an ES module that exports one object, as CommonJS does, it is that object's.
        const exported = module?.[key] ?? module?.default?.[key] ?? (key === 'default' ? module : undefined);
        if (exported === undefined) throw new Missing(`module '${name}' has no export '${key}'`);
        if (typeof exported !== 'function') throw new Missing(`'${key}' of module '${name}' is not a function`);
        handler = exported;
        if (handlers.size === 0) send('imported', { nonce, resident_bytes: residentBytes() });
        handlers.set(entry, handler);
    }
    return handler;
}

// Memory of this process that is no file's, as the supervisor will measure it.
function residentBytes() {
    let total = 0;
    for (const line of readFileSync('/proc/self/status', 'latin1').split('\n')) {
        const found = /^(?:RssAnon|RssShmem):\s+(\d+) kB/.exec(line);
        if (found) total += Number(found[1]) * 1024;
    }
    return total;
}

// Removes what lies in a directory, also in directories that may not be entered.
function empty(directory) {
    for (const entry of readdirSync(directory)) {
        const name = path.join(directory, entry);
        if (lstatSync(name).isDirectory()) {
            chmodSync(name, 0o700);
            empty(name);
        }
        rmSync(name, { recursive: true, force: true });
    }
}

// A working directory with nothing in it and nothing beside it, always of the same name.
function enterFreshDirectory() {
    const beside = readdirSync(SCRATCH);
    if (beside.length !== 1 || beside[0] !== 'work' || readdirSync(WORK).length !== 0) {
        chdir('/');
        empty(SCRATCH);
        mkdirSync(WORK);
    }
    chdir(WORK);
}

// --- OpenStack ------------------------------------------------------------------------------------

let certificates = [];
let cloudDirectory = null;
let cloud = null;

// A cloud's own authorities are trusted by whatever makes connections with Node's tls, beside those
// that Node comes with.
const plainContext = tls.createSecureContext;
tls.createSecureContext = function createSecureContext(options) {
    const context = plainContext(options);
    if (!options?.ca) for (const certificate of certificates) context.context.addCACert(certificate);
    return context;
};

function enterCloud(directory) {
    cloud = parse(readFileSync(path.join(directory, 'cloud.json'), 'utf8'));
    cloudDirectory = directory;
    certificates = cloud.cacert?.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
    const file = path.join(directory, 'ca.crt');
    // For programs that the function starts, and for libraries that take the name of a file.
    for (const name of ['NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE']) {
        if (certificates.length > 0) process.env[name] = file;
        else delete process.env[name];
    }
    // Connections that are kept open were made with other certificates.
    https.globalAgent.destroy();
}

// What a function may do in the cloud, anew for each execution: its token is of that execution.
function openstackOf(given, nonce) {
    if (given === null || given === undefined) return null;
    if (given.cloud !== cloudDirectory) enterCloud(given.cloud);
    const openstack = {
        token: given.token,
        expires_at: given.expires_at,
        project_id: given.project.id,
        user_id: given.user.id,
        auth_url: cloud.auth_url,
        region: cloud.region_name ?? null,
        interface: cloud.interface ?? 'public',
        catalog: cloud.catalog,
        ca_file: certificates.length > 0 ? path.join(cloudDirectory, 'ca.crt') : null,
    };
    // A function says with it that a service did not take the token; the next execution has another.
    Object.defineProperty(openstack, 'refused', {
        value: () => {
            if (run?.nonce !== nonce || run.refused) return;
            run.refused = true;
            send('token_refused', { nonce });
        },
    });
    return openstack;
}

// --- an execution ---------------------------------------------------------------------------------

// The execution under way.
let run = null;

// Runs an execution to its end. Resolves once it may be answered, to what is then sent.
function perform(request) {
    return new PlainPromise((resolve) => {
        run = { nonce: request.nonce, refused: false, concluded: false, spent: false, resolve };
        invoke(request).then(
            (value) => resolve(() => give(request, value)),
            (error) => resolve(() => fail(request.nonce, error)),
        );
    });
}

async function invoke(request) {
    const context = { openstack: openstackOf(request.openstack, request.nonce) };
    const handler = await find(request.entry, request.nonce);
    return handler(context, request.input);
}

function give({ nonce, max_result_bytes: most }, value) {
    let text;
    try {
        text = stringify(value === undefined ? null : value);
        if (text === undefined) throw new PlainError(`a ${typeof value} has no JSON`);
        // What JSON leaves out in an object is told of where it is all of the answer.
        if (typeof value === 'number' && text === 'null') throw new PlainError(`${value} has no JSON`);
    } catch (error) {
        const reason = `The function returned something that is not JSON: ${describe(error)}`;
        return ['bad_result', { nonce, reason: reason.slice(0, MAX_MESSAGE) }];
    }
    const length = byteLength(text);
    if (length > most) {
        const reason = `The function returned ${length} bytes of JSON; at most ${most} are allowed`;
        return ['bad_result', { nonce, reason, limit: 'result_bytes' }];
    }
    return [null, bufferFrom(`{"returned":{"nonce":${nonce},"output":${text}}}`)];
}

function fail(nonce, error) {
    log(error instanceof Missing ? `${error.message}\n` : `${trace(error)}\n`);
    return [isExhaustion(error) ? 'exhausted' : 'raised', { nonce, message: describe(error), limit: limitOf(error) }];
}

// Waits a moment for what the function has in flight. True where it would go on afterwards.
async function isLeftOver() {
    const until = hrtime() + GRACE;
    for (;;) {
        // At least once, for what was put off to the end of this turn.
        await new PlainPromise((resolve) => nextTurn(resolve));
        if (activeResources().length === 0) return false;
        if (hrtime() > until) return true;
    }
}

// An end without what the supervisor does not understand. What is undefined is left out of its JSON.
function told(request, content) {
    return request.names_limits ? content : { ...content, limit: undefined };
}

async function serve(request) {
    const { nonce } = request;
    try {
        enterFreshDirectory();
    } catch (error) {
        const message = `no fresh working directory: ${describe(error)}`;
        send('exhausted', told(request, { nonce, message, limit: limitOf(error) }));
        return;
    }
    const conclude = await perform(request);
    let [name, content] = conclude();
    run.concluded = true;
    if ((await isLeftOver()) || run.spent) send('spent', { nonce });
    run = null;
    collect();
    if (name === null) sendRaw(content);
    else send(name, told(request, content));
}

// What is thrown where nobody waits for it is the execution's end. What else the function has under
// way is in no known state, so the process ends with it.
process.on('uncaughtException', (error) => {
    if (run === null) return;
    const { nonce, resolve } = run;
    run.spent = true;
    if (run.concluded) log(`${trace(error)}\n`);
    else resolve(() => fail(nonce, error));
});

// Nothing is left that could settle the function's promise.
process.on('beforeExit', () => {
    if (run === null) return;
    const { nonce, resolve } = run;
    // In a turn of its own, which keeps the process from ending.
    nextTurn(() => resolve(() => fail(nonce, new Missing(NEVER_SETTLED))));
});

// Keeps the handler in place that Node would add with the first child process and take away again.
process.on('SIGCHLD', () => {});

v8.setFlagsFromString('--expose-gc');
const collectGarbage = vm.runInNewContext('gc');
v8.setFlagsFromString('--no-expose-gc');
let kept = 0;

// Bytes that the interpreter holds. Asked without opening a file, as process.memoryUsage() does: a function may
// have none left to open.
function held() {
    const { used_heap_size: heap, external_memory: external } = heapStatistics();
    return heap + external;
}

// Lets go of garbage, so that only what the function keeps is counted against the next execution.
function collect() {
    if (held() > kept + MAX_GARBAGE) {
        collectGarbage();
        kept = held();
    }
}

async function main() {
    // Starts the threads that Node reads files and looks up names with: later they would look like the function's.
    await fs.promises.stat('/');
    collect();
    send('ready', { version: VERSION });
    for (;;) await serve(receive());
}

main().catch((error) => {
    log(`${error?.stack}\n`);
    exit(1);
});
