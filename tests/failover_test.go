package tests

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// How soon after kill -9 of the leader the next put is acknowledged, at default
// settings.
const (
	failoverHalf = time.Second     // in half of the cases
	failoverMost = 3 * time.Second // in 99 of 100
)

// When the leader is killed the others go on soon, and who uses their mounts
// sees no error.
func TestFailover(t *testing.T) {
	kills := size(12, 100)
	c := startMountedCluster(t, 3)
	m := dialAt(t, c.addrs())
	puts := make(chan time.Time, 1<<16) // when each was acknowledged
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var putting sync.WaitGroup
	stop := make(chan struct{})
	putting.Go(func() {
		for n := 0; open(stop); n++ {
			_, err := m.Put(ctx, dgm.Put{File: gearsfs.At("/q"), Key: "k", Records: []gearsfs.NewRecord{{Data: fmt.Append(nil, n)}}})
			if err != nil {
				cancel(fmt.Errorf("put %d: %w", n, err))
				return
			}
			select {
			case puts <- time.Now():
			default: // nobody looks
			}
		}
	})
	var took []time.Duration
	for kill := range kills {
		took = append(took, c.killLeader(ctx, kill, puts))
	}
	close(stop)
	putting.Wait()
	require.NoError(t, context.Cause(ctx))
	c.verify()
	slices.Sort(took)
	t.Logf("%d kills, to the next put: p50 %v, p99 %v, at most %v", kills, quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1))
	require.Less(t, quantile(took, 0.5), failoverHalf)
	require.Less(t, quantile(took, 0.99), failoverMost)
}

// killLeader kills the leader while the other nodes' mounts are used, returns
// how long it took to the next put and starts the node again.
func (c *cluster) killLeader(ctx context.Context, kill int, puts chan time.Time) time.Duration {
	c.t.Helper()
	leader := c.leader()
	done := make(chan struct{})
	begun := make(chan struct{}, len(c.nodes))
	var using sync.WaitGroup
	errs := make([]error, len(c.nodes))
	for i, d := range c.nodes {
		if i != leader {
			using.Go(func() { errs[i] = useMount(d.mount, fmt.Sprintf("kill %d", kill), begun, done) })
		}
	}
	for range len(c.nodes) - 1 {
		<-begun
	}
	for len(puts) > 0 {
		<-puts
	}
	killed := time.Now()
	c.nodes[leader].kill()
	gone := time.Now()
	var took time.Duration
	for took == 0 {
		select {
		case at := <-puts:
			if at.After(gone) { // else it was acknowledged before
				took = at.Sub(killed)
			}
		case <-ctx.Done():
			require.NoError(c.t, context.Cause(ctx))
		}
	}
	close(done)
	using.Wait()
	for i, err := range errs {
		require.NoError(c.t, err, "on the mount of n%d, while n%d was killed", i+1, leader+1)
	}
	c.nodes[leader].start()
	return took
}

// useMount does what programs do to files until done is closed; begun is told
// when it does. Its error is what a program would have seen.
func useMount(mount, name string, begun chan<- struct{}, done <-chan struct{}) error {
	at := filepath.Join(mount, filepath.Base(filepath.Dir(mount))+" "+name)
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	log := filepath.Join(at, "log")
	lines := ""
	for round := 0; round == 0 || open(done); round++ {
		text := fmt.Sprintln("round", round)
		file := filepath.Join(at, fmt.Sprint("file ", round%5))
		if err := os.WriteFile(file+"~", []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Rename(file+"~", file); err != nil {
			return err
		}
		if err := appendTo(log, text); err != nil {
			return err
		}
		lines += text
		for path, want := range map[string]string{file: text, log: lines} {
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				return fmt.Errorf("%s has %q, not %q: %v", path, lastBytes(string(got)), lastBytes(want), err)
			}
		}
		if names, err := os.ReadDir(at); err != nil || len(names) != min(round+1, 5)+min(round, 1)+1 {
			return fmt.Errorf("%s has %v in round %d: %v", at, names, round, err)
		}
		put := filepath.Join(at, ".gears", "streams", "jobs", "k")
		if err := appendTo(filepath.Join(put, "put"), text); err != nil {
			return err
		}
		if got, err := os.ReadFile(filepath.Join(put, "take")); err != nil || string(got) != text {
			return fmt.Errorf("took %q, not %q: %v", got, text, err)
		}
		if round == 0 {
			begun <- struct{}{}
		}
	}
	return os.RemoveAll(at)
}

// appendTo appends with one write, as `echo >>` does.
func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(f, text); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// A take that waits on a mount goes on waiting when the leader is killed, and
// gets its record from the next one.
func TestWaitingTakeSurvives(t *testing.T) {
	t.Parallel()
	c := startMountedCluster(t, 3)
	leader := c.leader()
	waits, puts := c.nodes[(leader+1)%3], c.nodes[(leader+2)%3]
	require.NoError(t, os.WriteFile(filepath.Join(waits.mount, "q"), nil, 0o644))
	taken := make(chan result, 1)
	go func() { taken <- command{}.run(t, "cat", filepath.Join(waits.mount, ".gears/streams/q/k/take")) }()
	require.Eventually(t, func() bool {
		return strings.Contains(puts.gearsfs("waits").stdout, "take")
	}, runWithin, 20*time.Millisecond)
	c.nodes[leader].kill()
	r := command{}.run(t, gearsfsPath(), "put", filepath.Join(puts.mount, "q"), "k", "after")
	require.Zero(t, r.status, r.stderr)
	require.Equal(t, result{stdout: "after"}, <-taken)
	c.nodes[leader].start()
}

// WordCount over three nodes, while workers and leaders are killed: the figures
// are wc's.
func TestWordcountCluster(t *testing.T) {
	t.Parallel()
	bytes := int64(size(48<<20, 1<<30))
	c := startCluster(t, 3)
	var workers []*worker
	for range 3 {
		workers = append(workers, startWorkerAt(t, c.addrs()))
	}
	next, kills := int64(0), 0
	in := &hooked{Reader: textOf(bytes), hook: func(read int64) {
		if read < next {
			return
		}
		next += bytes / 12
		if kills++; kills%4 == 0 {
			leader := c.leader()
			c.nodes[leader].kill()
			c.leader()
			c.nodes[leader].start()
			return
		}
		i := kills % len(workers)
		workers[i].end(syscall.SIGKILL)
		workers[i] = startWorkerAt(t, c.addrs())
	}}
	got := command{stdin: in}.run(t, gearsfsPath(), "wordcount", "--node", c.addrs(), "-")
	require.Zero(t, got.status, got.stderr)
	require.Equal(t, append(wcOf(t, textOf(bytes)), "-"), strings.Fields(got.stdout))
	t.Logf("%d kills", kills)
	require.Equal(t, "jobs\n", c.nodes[0].gearsfs("ls", ":/wordcount").stdout)
	c.verify()
}
