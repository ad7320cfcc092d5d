// Search in pages that are opened from a directory: browsers start no workers there, so a hidden frame runs the worker's script.
// The theme looks for `IFrameWorker` by this name, and would fetch the like of it from elsewhere.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.frame.contentWindow.postMessage = (data) => this.answer(data)
      this.ready = new Promise((done) => {
        const script = this.frame.contentDocument.createElement("script")
        script.src = url
        script.onload = done
        this.frame.contentDocument.body.appendChild(script)
      })
    }

    answer(data) {
      const event = new MessageEvent("message", { data })
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
