package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// kill -9 of the process that serves a mount, at any moment and often: the
// programs that use it notice nothing but the time that it takes. Nothing fails,
// nothing is lost and nothing is done twice.
func TestTakeover(t *testing.T) {
	t.Run("of a mount of a node", func(t *testing.T) {
		d := startDaemon(t)
		testTakeover(t, startMount(t, "--node", d.addr), d.addr)
	})
	t.Run("of a mount with a node in it", func(t *testing.T) {
		data := filepath.Join(dir(t), "data")
		testTakeover(t, startMount(t, "--data", data), "unix:"+data+"/sock")
	})
}

func testTakeover(t *testing.T, m *mounted, addr string) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	kills := size(50, 500)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stop := make(chan struct{})
	var users, takers sync.WaitGroup
	use := func(group *sync.WaitGroup, name string, f func() error) {
		group.Go(func() {
			if err := f(); err != nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	require.NoError(t, os.Mkdir(m.path("tree"), 0o755))
	var counts [4]int
	for i := range 2 {
		use(&users, "append", func() (err error) {
			counts[i], err = appendRecords(stop, m.path("log"), i)
			return err
		})
		use(&users, "put", func() (err error) {
			counts[2+i], err = putRecords(stop, m.path(".gears", "streams", "queue", "q", "put"), 2+i)
			return err
		})
		use(&users, "tree", func() error {
			return growTree(stop, m.path("tree"), i, rand.New(rand.NewPCG(seed, uint64(i))))
		})
	}
	taken := make([][]string, 3)
	for i := range taken {
		use(&takers, "take", func() (err error) {
			taken[i], err = takeRecords(m.path(".gears", "streams", "queue", "q", "take"))
			return err
		})
	}
	use(&users, "rewrite", func() error { return rewrite(stop, m.path("file")) })
	for name, keep := range map[string]bool{"opened anew": false, "kept open": true} {
		use(&users, "scribble on what is "+name, func() error {
			return scribble(stop, m.path(name), keep, rand.New(rand.NewPCG(seed, 200)))
		})
	}

	rng := rand.New(rand.NewPCG(seed, 100))
	for i := range kills {
		strike := time.Duration(rng.IntN(400)) * time.Millisecond
		if i%100 == 99 {
			strike = 2 * time.Second // else the supervisor takes it for one that is of no use
		}
		select {
		case <-ctx.Done():
		case <-time.After(strike):
		}
		if ctx.Err() != nil {
			break
		}
		m.kill()
	}
	close(stop)
	requireEnd(t, ctx, &users)
	sealed := true
	require.NoError(t, dialAt(t, addr).Configure(ctx, gearsfs.At("/queue"), "q", dgm.StreamChange{Seal: &sealed}))
	requireEnd(t, ctx, &takers)

	log, err := os.ReadFile(m.path("log"))
	require.NoError(t, err)
	requireEachOnce(t, strings.Fields(string(log)), counts[:2], 0)
	requireEachOnce(t, slices.Concat(taken...), counts[2:], 2)
	t.Logf("%d kills, %v records", kills, counts)
}

// requireEnd waits for users of a mount, until one has failed.
func requireEnd(t *testing.T, ctx context.Context, users *sync.WaitGroup) {
	t.Helper()
	ended := make(chan struct{})
	go func() { users.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
	case <-time.After(runWithin):
		require.FailNow(t, "a user of the mount hangs")
	}
	require.NoError(t, context.Cause(ctx))
}

// requireEachOnce checks that each writer's records are there once, in order.
func requireEachOnce(t *testing.T, got []string, counts []int, first int) {
	t.Helper()
	seen := map[string]int{}
	for _, record := range got {
		seen[record]++
	}
	total := 0
	for i, n := range counts {
		total += n
		for k := range n {
			if times := seen[recordOf(first+i, k)]; times != 1 {
				assert.Fail(t, "not once", "record %s is there %d times", recordOf(first+i, k), times)
			}
		}
	}
	assert.Len(t, got, total, "records that nobody wrote")
}

func recordOf(writer, n int) string { return fmt.Sprintf("%d-%06d", writer, n) }

// appendRecords appends records to a file, each by one write, and syncs now and
// then.
func appendRecords(stop <-chan struct{}, path string, writer int) (n int, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for ; open(stop); n++ {
		if _, err := f.WriteString(recordOf(writer, n) + "\n"); err != nil {
			return n, err
		}
		if n%20 == 0 {
			if err := f.Sync(); err != nil {
				return n, err
			}
		}
	}
	return n, f.Close()
}

// putRecords puts records by both ways of a put file: each write one, or what
// is written until it is closed.
func putRecords(stop <-chan struct{}, path string, writer int) (n int, err error) {
	for open(stop) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return n, err
		}
		for range 10 {
			if _, err := f.WriteString(recordOf(writer, n) + "\n"); err != nil {
				return n, err
			}
			n++
		}
		if err := f.Close(); err != nil {
			return n, err
		}
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			return n, err
		}
		record := recordOf(writer, n) + "\n"
		for _, part := range []string{record[:1], record[1:5], record[5:]} {
			if _, err := f.WriteString(part); err != nil {
				return n, err
			}
		}
		if err := f.Close(); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// takeRecords takes records until their stream is sealed and drained.
func takeRecords(path string) (taken []string, err error) {
	for {
		record, err := readBlocking(path)
		if err != nil {
			return taken, fmt.Errorf("after %d records: %w", len(taken), err)
		}
		if len(record) == 0 {
			return taken, nil
		}
		taken = append(taken, strings.TrimSpace(string(record)))
	}
}

// readBlocking is os.ReadFile, which on a file system with poll reads without
// waiting and polls for more.
func readBlocking(path string) (data []byte, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return data, errors.Join(err, unix.Close(fd))
		}
		data = append(data, buf[:n]...)
	}
}

// growTree makes, renames and removes in a directory; each step must do what
// it does where nothing else happens.
func growTree(stop <-chan struct{}, dir string, who int, rng *rand.Rand) error {
	have := map[string]bool{}
	name := func() string { return fmt.Sprintf("%d.%02d", who, rng.IntN(30)) }
	for step := 0; open(stop); step++ {
		a, b := name(), name()
		at, to := filepath.Join(dir, a), filepath.Join(dir, b)
		var err error
		switch {
		case !have[a] && rng.IntN(4) == 0:
			err = os.Symlink("nowhere", at)
			have[a] = true
		case !have[a]:
			err = writeNew(at, a)
			have[a] = true
		case rng.IntN(2) == 0 && a != b:
			err = os.Rename(at, to)
			have[a], have[b] = false, true
		default:
			err = os.Remove(at)
			have[a] = false
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		if step%10 != 0 {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		count := 0
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), fmt.Sprint(who, ".")) {
				count++
				if !have[e.Name()] {
					return fmt.Errorf("step %d: %s should not be there", step, e.Name())
				}
			}
		}
		want := 0
		for _, there := range have {
			if there {
				want++
			}
		}
		if count != want {
			return fmt.Errorf("step %d: %d entries, not %d", step, count, want)
		}
	}
	return nil
}

// writeNew makes a file, removes a second one while it is open, and goes on
// using that.
func writeNew(path, content string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	gone, err := os.OpenFile(path+".gone", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer gone.Close()
	if err := os.Remove(path + ".gone"); err != nil {
		return err
	}
	for _, f := range []*os.File{f, gone} {
		if _, err := f.WriteString(content); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != content {
			return fmt.Errorf("read %q, %w", got, err)
		}
	}
	if _, err := os.Lstat(path + ".gone"); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s.gone is still there: %w", path, err)
	}
	return f.Close()
}

// rewrite writes a file in place and beside it, and reads it back.
func rewrite(stop <-chan struct{}, path string) error {
	for n := 0; open(stop); n++ {
		want := strings.Repeat(fmt.Sprintf("%08d", n), 3000)
		if err := os.WriteFile(path+".new", []byte(want), 0o644); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt([]byte("overwritten"), 9000); err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		want = want[:9000] + "overwritten" + want[9011:]
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			return fmt.Errorf("round %d: read %d bytes that are not what was written: %w", n, len(got), err)
		}
	}
	return nil
}

// scribble writes at random places of a file and sets its attributes, with no call
// between that would have them sent; what was answered is there when it looks. It keeps
// the file open, or opens it anew for each round.
func scribble(stop <-chan struct{}, path string, keep bool, rng *rand.Rand) error {
	const most = 256 << 10
	want := make([]byte, 0, most)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	for round := 0; open(stop); round++ {
		mode := os.FileMode(0o600 | rng.IntN(0o100))
		for n := range 1 + rng.IntN(200) {
			data := fmt.Appendf(nil, "%d.%d:%0*d|", round, n, rng.IntN(9000), round)
			at := rng.IntN(most - len(data))
			if _, err := f.WriteAt(data, int64(at)); err != nil {
				return err
			}
			want = want[:max(len(want), at+len(data))]
			copy(want[at:], data)
		}
		if err := f.Chmod(mode); err != nil {
			return err
		}
		if round%2 == 0 { // the last that is held
			if _, err := f.WriteAt([]byte("0"), 0); err != nil {
				return err
			}
			want[0] = '0'
		}
		if err := requireScribbled(f, want, mode); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if keep {
			continue
		}
		if err := f.Close(); err != nil {
			return err
		}
		if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return err
		}
	}
	return f.Close()
}

func requireScribbled(f *os.File, want []byte, mode os.FileMode) error {
	got, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		return fmt.Errorf("%d bytes, not %d; they differ at %d", len(got), len(want), at)
	}
	info, err := f.Stat()
	if err == nil && info.Mode() != mode {
		err = fmt.Errorf("mode %v, not %v", info.Mode(), mode)
	}
	return err
}
