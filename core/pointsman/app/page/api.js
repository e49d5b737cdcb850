// The admin API. The token is kept here, in memory, and nowhere else; credentials are an operator's certificate, there are no cookies.

let token = "";

export const setToken = (value) => { token = value; };

export class Refused extends Error {}

export async function get(path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers, cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(5000) });
  if (response.status === 401) throw new Refused("the token is not right");
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response.json();
}
