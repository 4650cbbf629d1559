package wordcount

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// volume returns an empty volume that is closed with the test.
func volume(t testing.TB) *dgm.Volume {
	t.Helper()
	data, err := persist.Open(filepath.Join(t.TempDir(), "data"), persist.Options{Create: true, Name: "n"})
	require.NoError(t, err)
	v, err := dgm.OpenVolume(context.Background(), dgm.VolumeConfig{Data: data, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	return v
}

// root returns a session on v that is closed with the test.
func root(t testing.TB, v *dgm.Volume) *dgm.Local {
	t.Helper()
	m, err := v.Local(dgm.Client{Caller: gearsfs.Root})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// joined returns a sender in front of a node with a worker.
func joined(t testing.TB) (s *Sender, a, b *dgm.Volume) {
	t.Helper()
	a, b = volume(t), volume(t)
	s, err := Join(context.Background(), a, b)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s, a, b
}

// requireTidy checks that no run has left a file on the nodes.
func requireTidy(t testing.TB, nodes ...*dgm.Volume) {
	t.Helper()
	ctx := context.Background()
	for _, v := range nodes {
		m := root(t, v)
		dir, err := m.Lookup(ctx, gearsfs.RootIno, dirName)
		require.NoError(t, err)
		entries, err := m.ReadDir(ctx, dir.Ino, "", 100)
		require.NoError(t, err)
		for _, e := range entries {
			require.Equal(t, jobsName, e.Name)
			require.Eventually(t, func() bool { // a worker may just be looking at it
				info, err := m.Stream(ctx, gearsfs.ByIno(e.Attr.Ino), gearsfs.DataKey)
				require.NoError(t, err)
				return info.Records+info.Leased == 0
			}, 10*time.Second, time.Millisecond, "jobs of runs that are over")
		}
	}
}

func TestTwoNodesCountAsWcDoes(t *testing.T) {
	s, a, b := joined(t)
	for name, text := range texts() {
		t.Run(name, func(t *testing.T) {
			got, err := s.Count(context.Background(), bytes.NewReader(text), Options{})
			require.NoError(t, err)
			require.Equal(t, wc(t, text), got.Counts)
			require.Empty(t, got.Top)
		})
	}
	requireTidy(t, a, b)
}

// listen serves v on a unix socket until the test ends and returns its address.
func listen(t testing.TB, v *dgm.Volume) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := v.Serve(ctx, l, nil); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); serving.Wait() })
	return "unix:" + path
}

func TestTopIsMergedFromAllWorkers(t *testing.T) {
	a, b := volume(t), volume(t)
	addr := listen(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	var working sync.WaitGroup
	for range 3 {
		m, err := dgm.Dial(ctx, addr, dgm.RemoteOptions{})
		require.NoError(t, err)
		working.Go(func() {
			if err := Work(ctx, m, WorkOptions{}); err != nil {
				t.Error(err)
			}
			m.Close()
		})
	}
	s, err := Connect(context.Background(), a, addr, dgm.RemoteOptions{})
	require.NoError(t, err)
	text := bytes.Join([][]byte{texts()["long lines"], []byte(strings.Repeat("to be or not to be\n", 50_000))}, nil)
	var want wordMap
	printableClasses.countWords(&want, text, outside)
	got, err := s.Count(context.Background(), bytes.NewReader(text), Options{Top: 20, Rule: RulePrintable})
	require.NoError(t, err)
	require.Equal(t, want.top(20), got.Top)
	require.Equal(t, printableClasses.count(text, outside), got.Counts)
	require.NoError(t, s.Close())
	cancel()
	working.Wait()
	requireTidy(t, a, b)
}

// A run that is cancelled, or whose input fails, leaves nothing behind; the
// next one finds everything in order.
func TestACancelledRunIsRemoved(t *testing.T) {
	s, a, b := joined(t)
	ctx, cancel := context.WithCancel(context.Background())
	in, out := io.Pipe()
	go out.Write(bytes.Repeat([]byte("line\n"), 2*batchBytes/5)) //nolint:errcheck // it is cut off
	_, err := s.Count(ctx, in, Options{Progress: func(Progress) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
	requireTidy(t, a, b)

	in.CloseWithError(io.ErrUnexpectedEOF)
	_, err = s.Count(context.Background(), io.MultiReader(strings.NewReader("a\n"), brokenReader{}), Options{})
	require.ErrorIs(t, err, io.ErrClosedPipe)
	requireTidy(t, a, b)

	got, err := s.Count(context.Background(), strings.NewReader("one two\n"), Options{})
	require.NoError(t, err)
	require.Equal(t, Counts{1, 2, 8}, got.Counts)
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }
