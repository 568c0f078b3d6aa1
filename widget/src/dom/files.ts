/** Names the files of this build that lie beside the app. */

/** Repeats the query of the app's URL, which makes the URL of a retry unique. */
export const fileUrl = (name: string): string => new URL(`${name}-${BUILD}.js${new URL(import.meta.url).search}`, import.meta.url).href;
