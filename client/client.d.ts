export function connect<C extends object = Record<string, any>>(url: string | URL, options: import("./types.js").Options): import("./types.js").Stream<C>;
export * from "./types.js";
