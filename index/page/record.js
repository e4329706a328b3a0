// Audio in the browser: microphone and files, decoded to WAV.
// The service decodes with libsndfile, which reads neither WebM nor AAC.

const RATE = 16000;
const MOST_S = 15;

// Not on a page that is neither on https nor on this machine.
export const ableToRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && "MediaRecorder" in window);

// Start recording. Returns {stop, cancel, done}: `done` resolves to the WAV as a blob.
export async function record(tick) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    throw new Error(
      error.name === "NotAllowedError"
        ? "the browser does not let this page use the microphone"
        : "no microphone was found",
    );
  }
  const recorder = new MediaRecorder(stream);
  const chunks = [];
  recorder.ondataavailable = (event) => chunks.push(event.data);
  const began = performance.now();
  const clock = setInterval(() => {
    const seconds = (performance.now() - began) / 1000;
    tick(seconds);
    if (seconds >= MOST_S) stop();
  }, 250);
  const stop = () => recorder.state !== "inactive" && recorder.stop();
  let dropped = false;
  const done = new Promise((resolve, reject) => {
    recorder.onstop = () => {
      clearInterval(clock);
      for (const track of stream.getTracks()) track.stop();
      if (dropped) reject(new Error("the recording was dropped"));
      else toWav(new Blob(chunks, { type: recorder.mimeType })).then(resolve, () => reject(new Error("nothing was recorded")));
    };
  });
  recorder.start(500);
  const cancel = () => {
    dropped = true;
    stop();
  };
  return { stop, cancel, done };
}

// The first seconds of any sound that the browser decodes, as mono 16-bit WAV.
export async function toWav(blob) {
  const context = new OfflineAudioContext(1, RATE, RATE);
  const sound = await context.decodeAudioData(await blob.arrayBuffer());
  const frames = Math.min(Math.ceil(sound.duration * RATE), MOST_S * RATE);
  if (frames === 0) throw new Error("an empty sound");
  const mixing = new OfflineAudioContext(1, frames, RATE);
  const player = mixing.createBufferSource();
  player.buffer = sound;
  player.connect(mixing.destination);
  player.start();
  return wav((await mixing.startRendering()).getChannelData(0));
}

function wav(samples) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((c, i) => bytes.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  word(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true);
  bytes.setUint16(22, 1, true);
  bytes.setUint32(24, RATE, true);
  bytes.setUint32(28, 2 * RATE, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true);
  word(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => bytes.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Blob([bytes], { type: "audio/wav" });
}
