/** Declares what build.js supplies: stylesheets as minified text, file names and the version. */
declare module "*.css" {
  const text: string;
  export default text;
}
/** The hash in the names of all files of a build. */
declare const BUILD: string;
/** The codes of the languages, separated by spaces. */
declare const LANGUAGES: string;
/** The server's root, relative to the script. */
declare const ROOT: string;
declare const VERSION: string;
