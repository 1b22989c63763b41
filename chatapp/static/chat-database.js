// Chats that stay in this browser, for all of its tabs, in IndexedDB. Nothing of it is sent to the server.

const STORE = "chats";

export class ChatDatabase {
  #database;

  // Rejects if the browser forbids it.
  static async open() {
    const request = indexedDB.open("chatapp", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    const made = new ChatDatabase();
    made.#database = await resultOf(request);
    return made;
  }

  all() {
    return resultOf(this.#store("readonly").getAll());
  }

  get(id) {
    return resultOf(this.#store("readonly").get(id));
  }

  // If another tab has changed the chat meanwhile, both stay: this one gets another id. If it has deleted the chat,
  // nothing is written.
  async put(chat) {
    const store = this.#store("readwrite");
    const found = await resultOf(store.get(chat.id));
    if (!found && chat.version > 0) return;
    const id = found && found.version !== chat.version ? newId() : chat.id;
    const version = chat.version + 1;
    store.put({ ...chat, id, version });
    await endOf(store.transaction);
    Object.assign(chat, { id, version });
  }

  async delete(chat) {
    const store = this.#store("readwrite");
    store.delete(chat.id);
    await endOf(store.transaction);
    chat.version = 0;
  }

  async clear() {
    const store = this.#store("readwrite");
    store.clear();
    await endOf(store.transaction);
  }

  close() {
    this.#database.close();
  }

  #store(mode) {
    return this.#database.transaction(STORE, mode).objectStore(STORE);
  }
}

// Not crypto.randomUUID(), which pages without HTTPS do not have.
export function newId(bytes = 16) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function endOf(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
}
