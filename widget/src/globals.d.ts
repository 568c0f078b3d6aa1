/** The stylesheets arrive as minified text, and the loader learns the app's file name and the version, all from build.js. */
declare module "*.css" {
  const text: string;
  export default text;
}
declare const APP_FILE: string;
declare const LANGUAGES: Record<string, string>;
declare const ROOT: string;
declare const VERSION: string;
