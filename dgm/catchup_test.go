package dgm_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// logLines keeps what is logged.
type logLines struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(b)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

func putOne(t *testing.T, m dgm.Manager, data []byte) error {
	t.Helper()
	_, err := m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "data", Records: []gearsfs.NewRecord{{Data: data}}})
	return err
}

// A node that joins a volume whose log does not go back to its beginning gets
// the state as a snapshot, while puts go on; then it is as the others are.
func TestJoinBySnapshot(t *testing.T) {
	t.Parallel()
	c := newNodes(t, "a")
	m := local(t, c.all[0].vol)
	data := make([]byte, 60<<10)
	for range 1700 { // far behind what is kept of the log
		require.NoError(t, putOne(t, m, data))
	}
	ctx, stop := context.WithCancel(t.Context())
	var puts atomic.Int64
	var putting sync.WaitGroup
	putting.Go(func() {
		for ctx.Err() == nil {
			if err := putOne(t, m, data[:1000]); err != nil {
				t.Error(err)
			}
			puts.Add(1)
		}
	})
	lines := new(logLines)
	for _, name := range []string{"b", "c"} {
		n := c.add(name)
		n.log = slog.New(slog.NewTextHandler(lines, nil))
		require.NoError(t, n.start(c.all[0].addr()))
		require.NoError(t, n.vol.WaitVoter(t.Context(), nil))
	}
	stop()
	putting.Wait()
	require.Equal(t, 2, strings.Count(lines.String(), "the state is that of a snapshot"), lines.String())
	require.NoError(t, m.Verify(t.Context()))
	for _, n := range c.all {
		require.Eventually(t, func() bool {
			l := local(t, n.vol)
			infos, err := l.ListStreams(t.Context(), gearsfs.At("/q"), "", 1)
			return err == nil && len(infos) == 1 && infos[0].Records == 1700+uint64(puts.Load())
		}, 20*time.Second, 10*time.Millisecond, n.name)
	}
}

// A replica whose state was changed by something else is found.
func TestVerifyFindsDamage(t *testing.T) {
	c := newNodes(t, "a", "b", "c")
	m := local(t, c.leader().vol)
	require.NoError(t, putOne(t, m, []byte("x")))
	require.NoError(t, m.Verify(t.Context()))
	bad := c.follower()
	bad.close()
	data, err := persist.Open(bad.dir, persist.Options{Name: bad.name})
	require.NoError(t, err)
	data.State.Set(persist.RemoteKey("nobody"), nil)
	require.NoError(t, data.State.Commit())
	require.NoError(t, data.Close())
	require.NoError(t, bad.start(""))
	require.Eventually(t, func() bool {
		err = m.Verify(t.Context())
		return gearsfs.CodeOf(err) == gearsfs.ErrDamaged.Code
	}, 30*time.Second, 100*time.Millisecond)
	require.ErrorContains(t, err, "the state of "+bad.name+" differs")
	require.Contains(t, strings.Join(bad.status().Warnings, "\n"), "differs")
	require.Contains(t, strings.Join(c.leader().status().Warnings, "\n"), bad.name)
}
