/** The stylesheets arrive as minified text, and the loader learns the app's file name, both from build.js. */
declare module "*.css" {
  const text: string;
  export default text;
}
declare const APP_FILE: string;
