/** Declares what build.js supplies: stylesheets as minified text, file names and the version. */
declare module "*.css" {
  const text: string;
  export default text;
}
/** The app's file name, which contains its hash. */
declare const APP_FILE: string;
/** The file name of each language, by its code. */
declare const LANGUAGES: Record<string, string>;
/** The server's root, relative to the script. */
declare const ROOT: string;
declare const VERSION: string;
