package tests

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// textOf returns so many bytes of text: lines of words of all lengths.
func textOf(n int64) io.Reader {
	rng := rand.New(rand.NewPCG(5, 6))
	var page bytes.Buffer
	for page.Len() < 4<<20 {
		for range rng.IntN(18) {
			word := fmt.Sprintf("%x", rng.Uint64())[:1+rng.IntN(12)]
			page.WriteString(word + " \t,."[rng.IntN(2):1+rng.IntN(4)])
		}
		page.WriteByte('\n')
	}
	return io.LimitReader(&repeater{page: page.Bytes()}, n)
}

// again returns n bytes of the same text over and over.
func again(text string, n int64) io.Reader {
	return io.LimitReader(&repeater{page: bytes.Repeat([]byte(text), 1<<16)}, n)
}

// A repeater reads one page again and again.
type repeater struct {
	page []byte
	at   int
}

func (r *repeater) Read(b []byte) (int, error) {
	n := copy(b, r.page[r.at:])
	r.at = (r.at + n) % len(r.page)
	return n, nil
}

// hooked calls hook with the number of bytes read so far, before each read.
type hooked struct {
	io.Reader
	read int64
	hook func(read int64)
}

func (h *hooked) Read(b []byte) (int, error) {
	h.hook(h.read)
	n, err := h.Reader.Read(b)
	h.read += int64(n)
	return n, err
}

// wcOf returns wc's figures of what in reads.
func wcOf(t *testing.T, in io.Reader) []string {
	t.Helper()
	return strings.Fields(command{stdin: in, env: []string{"LC_ALL=C"}}.must(t, "wc", "-lwc"))
}

// The figures are wc's, on inputs of every kind and size, and the memory of the
// process that has both nodes in it stays flat.
func TestWordcount(t *testing.T) {
	t.Parallel()
	text := int64(size(256<<20, 2<<30))
	for _, input := range []struct {
		name string
		make func() io.Reader
	}{
		{"empty", func() io.Reader { return strings.NewReader("") }},
		{"no last newline", func() io.Reader { return strings.NewReader("one two\nthree") }},
		{"one line of 100 MiB", func() io.Reader {
			return again("some words of a line \x01\x80 ", 100<<20)
		}},
		{"one word of 100 MiB", func() io.Reader { return again("word", 100<<20) }},
		{"binary", func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{7}), 64<<20) }},
		{"text", func() io.Reader { return textOf(text) }},
	} {
		t.Run(input.name, func(t *testing.T) {
			began := time.Now()
			want := wcOf(t, input.make())
			wcTook := time.Since(began)

			cmd := exec.Command(gearsfsPath(), "wordcount", "-")
			peak, next := uint64(0), int64(0)
			cmd.Stdin = &hooked{Reader: input.make(), hook: func(read int64) {
				if read >= next {
					next += 8 << 20
					peak = max(peak, peakRSSOf(t, cmd.Process.Pid))
				}
			}}
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			began = time.Now()
			require.NoError(t, cmd.Run(), stderr.String())
			took := time.Since(began)
			require.Equal(t, append(want, "-"), strings.Fields(stdout.String()))
			require.Empty(t, stderr.String())
			t.Logf("%s lines, %s words, %s bytes: %v, wc %v, peak memory %d MiB",
				want[0], want[1], want[2], took.Round(time.Millisecond), wcTook.Round(time.Millisecond), peak>>20)
			require.Less(t, peak, uint64(memoryMax))
		})
	}
}

// Top words and totals of several files.
func TestWordcountTop(t *testing.T) {
	t.Parallel()
	at := dir(t)
	for name, n := range map[string]int64{"a": 1 << 20, "b": 3 << 20} {
		text, err := io.ReadAll(textOf(n))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(at, name), append(text, strings.Repeat(" the the end the\n", 1000)...), 0o644))
	}
	c := command{dir: at, env: []string{"LC_ALL=C"}}
	want := c.must(t, "wc", "-lwc", "a", "b") + c.must(t, "sh", "-c",
		`cat a b | tr -s ' \t\n' '\n\n\n' | grep -v '^$' | sort | uniq -c | sort -k1,1nr -k2 | head -15`)
	require.Equal(t, strings.Fields(want), strings.Fields(c.must(t, gearsfsPath(), "wordcount", "--top", "15", "a", "b")))
	require.Contains(t, want, " the\n")
}

// A worker is a `gearsfs wordcount --worker` process.
type worker struct {
	t   testing.TB
	cmd *exec.Cmd
	log bytes.Buffer
}

// startWorker starts a worker for the daemon; it ends with the test.
func (d *daemon) startWorker() *worker {
	d.t.Helper()
	return startWorkerAt(d.t, d.addr)
}

func startWorkerAt(t testing.TB, addrs string) *worker {
	t.Helper()
	w := &worker{t: t, cmd: exec.Command(gearsfsPath(), "wordcount", "--node", addrs, "--worker")}
	w.cmd.Stderr = &w.log
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, w.cmd.Start())
	t.Cleanup(func() {
		if w.cmd.ProcessState == nil {
			w.end(syscall.SIGTERM)
		}
		if t.Failed() {
			t.Logf("the worker said: %s", w.log.String())
		}
	})
	return w
}

// end ends the worker by a signal and waits for it.
func (w *worker) end(signal syscall.Signal) {
	w.t.Helper()
	if err := w.cmd.Process.Signal(signal); err != nil {
		w.t.Error(err)
	}
	_ = w.cmd.Wait() // the status says the signal
}

// Several workers at a daemon of their own; they and the daemon are killed -9
// while they work. The figures are wc's all the same, and nothing stays behind.
func TestWordcountWorkersKilled(t *testing.T) {
	t.Parallel()
	bytes := int64(size(96<<20, 1<<30))
	d := startDaemon(t)
	workers := []*worker{d.startWorker(), d.startWorker(), d.startWorker()}
	next, kills := int64(0), 0
	in := &hooked{Reader: textOf(bytes), hook: func(read int64) {
		if read < next {
			return
		}
		next += bytes / 12
		if kills++; kills%4 == 0 {
			d.kill()
			d.start()
			return
		}
		i := kills % len(workers)
		workers[i].end(syscall.SIGKILL)
		workers[i] = d.startWorker()
	}}
	got := command{stdin: in, env: []string{"GEARSFS_NODE=" + d.addr}}.run(t, gearsfsPath(), "wordcount", "--node", d.addr, "-")
	require.Zero(t, got.status, got.stderr)
	require.Equal(t, append(wcOf(t, textOf(bytes)), "-"), strings.Fields(got.stdout))
	t.Logf("%d kills", kills)
	require.Equal(t, "jobs\n", d.gearsfs("ls", ":/wordcount").stdout)
}
