/** The client of sse-gateway; see docs/client.md. @module */
/** @type {import("./types.js").Connect} */
export declare const connect: import("./types.js").Connect;

export * from "./types.js";
