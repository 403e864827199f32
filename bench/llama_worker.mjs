// Generates greedily with llama.cpp, through the npm package node-llama-cpp. Its only argument is a JSON object: `module`
// (path of the package's index.js), `gguf` (path), `threads`, `warmup_tokens`, `cases`, a list of {name, prompt (token
// ids), new, times}, and, optionally, `texts` to tokenise. Prints a line of JSON, as common.answer does.
import {readFileSync} from "node:fs";
import process from "node:process";
import {pathToFileURL} from "node:url";

const job = JSON.parse(process.argv[2]);
const {getLlama} = await import(pathToFileURL(job.module));
const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, progressLogs: false, logLevel: "error", maxThreads: job.threads,
});
const model = await llama.loadModel({modelPath: job.gguf});
const lengths = job.cases.map((each) => each.prompt.length + each.new);
const context = await model.createContext({
    contextSize: Math.max(...lengths), threads: {ideal: job.threads, min: job.threads},
});
const sequence = context.getSequence();

// Generates token by token, past tokens that end a text. Returns [seconds, tokens].
async function generate(prompt, count) {
    await sequence.clearHistory();
    const next = {generateNext: {token: true, options: {temperature: 0}}};
    const start = performance.now();
    const tokens = [];
    let unread = prompt;
    while (tokens.length < count) {
        const last = [unread.at(-1), next];
        const answers = await sequence.controlledEvaluate([...unread.slice(0, -1), last]);
        unread = [answers.at(-1).next.token];
        tokens.push(unread[0]);
    }
    return [(performance.now() - start) / 1e3, tokens];
}

const seconds = {};
const tokens = {};
for (const each of job.cases) {
    await generate(each.prompt, Math.min(each.new, job.warmup_tokens));
    const calls = [];
    for (let call = 0; call < each.times; call++)
        calls.push(await generate(each.prompt, each.new));
    const sorted = calls.map(([time]) => time).sort((a, b) => a - b);
    seconds[each.name] = sorted[(sorted.length - 1) >> 1];
    tokens[each.name] = [calls.at(-1)[1]];
}
const texts = (job.texts ?? []).map((text) => model.tokenize(text));
const {version} = JSON.parse(readFileSync(new URL("../package.json", pathToFileURL(job.module))));
const versions = {node: process.version, "node-llama-cpp": version, "llama.cpp": llama.llamaCppRelease.release};
const peak_bytes = 1024 * process.resourceUsage().maxRSS;
console.log(JSON.stringify({seconds, tokens, texts, peak_bytes, versions}));
process.exit(0);
