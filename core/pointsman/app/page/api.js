// The admin API. The token is kept here, in memory, and nowhere else; credentials are an operator's certificate, there are no cookies.

let token = "";

export const setToken = (value) => { token = value; };

// `token`: whether one would help; else only an operator's certificate does.
export class Refused extends Error {
  constructor(message, token) {
    super(message);
    this.token = token;
  }
}

async function reason(response) {
  const told = await response.json().catch(() => ({}));
  return told.error ?? `the control plane answered ${response.status}`;
}

export async function get(path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers, cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(5000) });
  if (response.status === 401 || response.status === 403) throw new Refused(await reason(response), response.headers.has("www-authenticate"));
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response.json();
}
