/**
 * Builds what the package ships, beside package.json or in another folder:
 *
 *     node build.mjs bundles [folder]    client.js and react.js, minified, with source maps
 *     node build.mjs types [folder]      client.d.ts, react.d.ts and the types that they export
 *
 * The same sources give the same bytes: esbuild and TypeScript are pinned by package-lock.json.
 */

import { writeFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import esbuild from "esbuild";
import ts from "typescript";

const HERE = dirname(fileURLToPath(import.meta.url));

/** The entries of the package, and the module of src/ whose types each exports. */
const ENTRIES = { client: "types", react: "react-types" };

/** The oldest browsers that have all that the client calls; docs/client.md names them. */
const BROWSERS = ["chrome100", "firefox97", "safari15.4"];

/**
 * Other entries import client.js in place of bundling it: a page must not have two copies.
 * @type {esbuild.Plugin}
 */
const sharedClient = {
  name: "shared-client",
  setup: (build) =>
    build.onResolve({ filter: /^\.\/client\.js$/ }, () => ({ path: "./client.js", external: true })),
};

/** @param {string} folder */
async function buildBundles(folder) {
  for (const entry of Object.keys(ENTRIES))
    await esbuild.build({
      // The map names sources relative to this folder, wherever it is written.
      absWorkingDir: HERE,
      entryPoints: [`src/${entry}.js`],
      outfile: join(HERE, `${entry}.js`),
      bundle: true,
      format: "esm",
      target: BROWSERS,
      minify: true,
      sourcemap: "linked",
      external: ["react"],
      plugins: [sharedClient],
      banner: { js: `/*! sse-gateway-client, MIT license, built from client/src */` },
      logLevel: "warning",
      write: false,
    }).then(({ outputFiles }) => {
      for (const { path, contents } of outputFiles) writeFileSync(join(folder, relative(HERE, path)), contents);
    });
}

/** @param {string} folder */
function buildTypes(folder) {
  const host = { ...ts.sys, onUnRecoverableConfigFileDiagnostic: report };
  const config = ts.getParsedCommandLineOfConfigFile(join(HERE, "tsconfig.json"), {}, host);
  const options = { ...config.options, noEmit: false, declaration: true, emitDeclarationOnly: true, outDir: folder };
  const program = ts.createProgram(config.fileNames, options);
  const wanted = new Set(Object.entries(ENTRIES).flat().map((name) => `${name}.d.ts`));
  const { diagnostics } = program.emit(undefined, (path, text) => {
    const name = relative(folder, path);
    // A module in JavaScript cannot re-export all types of another one.
    const types = ENTRIES[name.replace(".d.ts", "")];
    if (wanted.has(name)) writeFileSync(path, types ? `${text}export * from "./${types}.js";\n` : text);
  });
  for (const diagnostic of [...ts.getPreEmitDiagnostics(program), ...diagnostics]) report(diagnostic);
}

/** @param {ts.Diagnostic} diagnostic */
function report(diagnostic) {
  const host = { getCurrentDirectory: () => HERE, getCanonicalFileName: (name) => name, getNewLine: () => "\n" };
  process.stderr.write(ts.formatDiagnostic(diagnostic, host));
  process.exitCode = 1;
}

const [command, folder = HERE] = process.argv.slice(2);
if (command === "bundles") await buildBundles(resolve(folder));
else if (command === "types") buildTypes(resolve(folder));
else throw new Error(`usage: node build.mjs bundles|types [folder]`);
