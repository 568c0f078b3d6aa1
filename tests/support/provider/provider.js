// `node provider.js REDIRECT_URI`: a certified OpenID provider on loopback, with development's login and consent forms.
// Prints its issuer. "rotate" on standard input replaces its keys. Some account names get an ID token with one fault.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { decodeJwt, exportJWK, generateKeyPair, SignJWT, UnsecuredJWT } from "jose";
import Provider from "oidc-provider";

const redirect = process.argv[2];
const GROUPS = { ada: ["sre", "staff"], ben: ["staff"], eve: ["guests"] };
const FAULTS = {
  "wrong-audience": (claims) => ({ ...claims, aud: "another-client" }),
  "shared-audience": (claims) => ({ ...claims, aud: [claims.aud, "another-client"], azp: "another-client" }),
  "wrong-issuer": (claims) => ({ ...claims, iss: "https://elsewhere.example" }),
  "wrong-nonce": (claims) => ({ ...claims, nonce: "of-another-login" }),
  "no-nonce": ({ nonce, ...claims }) => claims,
  expired: (claims) => ({ ...claims, iat: claims.iat - 7200, exp: claims.iat - 3600 }),
  eternal: ({ exp, ...claims }) => claims,
  "other-key": (claims) => claims,
  unsigned: (claims) => claims,
};
let current;

async function build(issuer) {
  const { privateKey } = await generateKeyPair("RS256", { extractable: true });
  const kid = `key-${Math.random().toString(36).slice(2)}`;
  const provider = new Provider(issuer, {
    clients: [{ client_id: "secateur", client_secret: "a secret: with + and %", redirect_uris: [redirect] }],
    claims: { openid: ["sub", "groups", "realm", "preferred_username", "email", "email_verified"] },
    conformIdTokenClaims: false, // groups in the ID token, as most providers give them
    jwks: { keys: [{ ...(await exportJWK(privateKey)), kid, alg: "RS256", use: "sig" }] },
    cookies: { keys: ["of this test"] },
    pkce: { required: () => true },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...about(id) }) }),
    ttl: { AccessToken: 60, AuthorizationCode: 60, Grant: 600, IdToken: 600, Interaction: 600, Session: 600 },
  });
  provider.use(async (context, next) => {
    await next();
    const claims = context.path === "/token" && context.body?.id_token ? decodeJwt(context.body.id_token) : {};
    const fault = FAULTS[claims.sub];
    if (!fault) return;
    const signing = claims.sub === "other-key" ? (await generateKeyPair("RS256")).privateKey : privateKey;
    const altered = fault(claims);
    context.body = {
      ...context.body,
      id_token: claims.sub === "unsigned"
        ? new UnsecuredJWT(altered).encode()
        : await new SignJWT(altered).setProtectedHeader({ alg: "RS256", kid }).sign(signing),
    };
  });
  current = provider.callback();
}

function about(id) {
  const groups = GROUPS[id] ?? ["sre"];
  const email = { email: "ada@shop.example", email_verified: id === "ada" };
  return { groups, realm: { roles: groups }, preferred_username: `${id}@shop.example`, ...email };
}

const server = createServer((request, response) => current(request, response));
server.listen(0, "127.0.0.1", async () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  await build(issuer);
  console.log(issuer);
  for await (const line of createInterface({ input: process.stdin })) {
    if (line === "rotate") await build(issuer);
    console.log(line);
  }
  process.exit(); // the test has ended
});
