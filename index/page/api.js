// HTTP client of the query service: API key, errors in plain words.

import { $ } from "./dom.js";

const KEY = "braid-key";

export class Refused extends Error {
  constructor(status, field, reason) {
    super(field && !["request", "body", "id", "model"].includes(field) ? `${field}: ${reason}` : reason);
    this.status = status;
    this.field = field;
    this.reason = reason;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

const headers = () => (hasKey() ? { authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {});

// The answer as JSON, null for an empty one. Throws Refused; status 0 without an answer.
export async function call(path, { body, signal } = {}) {
  const answer = await fetched(path, body === undefined ? { signal } : { signal, method: "POST", ...packed(body) });
  return answer.status === 204 ? null : answer.json();
}

// A body with files is sent as a form, which may be larger than JSON.
function packed(body) {
  if (!Object.values(body).some((value) => value instanceof Blob)) return { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    if (value instanceof Blob) form.append(name, value, name); // a file's own name stays here
    else form.append(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  return { body: form };
}

async function fetched(path, options) {
  const sent = sessionStorage.getItem(KEY);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "", "the index does not answer; is it running?");
  }
  if (answer.ok) return answer;
  let problem = {};
  try {
    problem = (await answer.json()).error ?? {};
  } catch {
    problem = { reason: `answered ${answer.status} without saying why` };
  }
  if (answer.status === 401) {
    await askForKey(sent);
    return fetched(path, options);
  }
  throw new Refused(answer.status, problem.field, problem.reason ?? `answered ${answer.status}`);
}

let asking = null;

// One dialog asks for the key, even if several calls are refused at once.
function askForKey(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return Promise.resolve(); // given meanwhile
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    if (refused !== null) $("key-reason").textContent = "That key was not accepted. Try another.";
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("key").value.trim());
      $("key").value = "";
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
  });
  return asking;
}

export const address = (kind, record) =>
  `/v1/${kind}?id=${encodeURIComponent(record.id)}&v=${record.version}`;

// The URL of a record's thumb, picture, snippet or sound. The bytes are fetched here with a key, because an element
// cannot send headers, and after an element has failed, because it does not tell why.
export async function source(kind, record, { here = hasKey(), signal } = {}) {
  if (!here) return address(kind, record);
  const answer = await fetched(address(kind, record), { signal });
  return URL.createObjectURL(await answer.blob());
}

// Why a record's text, picture or sound is not shown.
export const absence = (what, error) => `${what} ${error.status === 404 ? "is not kept any more" : "cannot be read now"}`;

export const bytes = async (path) => (await fetched(path, {})).blob();

export const text = async (path, { signal } = {}) => (await fetched(path, { signal })).text();

export function release(url) {
  if (url.startsWith("blob:")) URL.revokeObjectURL(url);
}
