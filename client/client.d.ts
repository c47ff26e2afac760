/** @type {import("./types.js").Connect} */
export const connect: import("./types.js").Connect;
export * from "./types.js";
