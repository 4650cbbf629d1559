package mount_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// interrupted is a Manager whose first Put is interrupted.
type interrupted struct {
	dgm.Manager
	done atomic.Bool
}

func (m *interrupted) Put(ctx context.Context, p dgm.Put) (dgm.PutResult, error) {
	if !m.done.Swap(true) {
		return dgm.PutResult{}, context.Canceled
	}
	return m.Manager.Put(ctx, p)
}

// toldWaits is a Manager that tells of each wait for a lock.
type toldWaits struct {
	dgm.Manager
	waits chan struct{}
}

func (m *toldWaits) Lock(ctx context.Context, ino gearsfs.Ino, l gearsfs.FileLock, noWait bool) error {
	if !noWait {
		m.waits <- struct{}{}
	}
	return m.Manager.Lock(ctx, ino, l, noWait)
}

// A process that waits to convert its flock has given up what it had. Where a signal
// interrupts it that is no reason to fail: it waits on, as the handler wants.
func TestInterruptedConversion(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	m := &toldWaits{session(t, vol), make(chan struct{}, 8)}
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	mountOn(t, m, f.dir, "")
	require.NoError(t, os.WriteFile(f.path("f"), nil, 0o644))
	a, b := newLocker(t, f.path("f")), newLocker(t, f.path("f"))
	for _, l := range []*locker{a, b} {
		l.ok("flock try read 0 0")
	}
	b.say("flock wait write 0 0")
	<-m.waits
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", b.cmd.Process.Pid))
	require.NoError(t, err)
	for _, thread := range threads {
		var id int
		_, err := fmt.Sscan(thread.Name(), &id)
		require.NoError(t, err)
		require.NoError(t, unix.Tgkill(b.cmd.Process.Pid, id, unix.SIGURG))
	}
	select {
	case <-m.waits:
	case answer := <-b.answers:
		require.Fail(t, "it does not wait any more", answer)
	}
	a.ok("flock try none 0 0")
	require.Equal(t, "ok", b.answer())
}

// away is a Manager whose node is away: puts wait until who asked stops waiting.
type away struct {
	dgm.Manager
	asked, stopped chan struct{}
}

func (m *away) Put(ctx context.Context, _ dgm.Put) (dgm.PutResult, error) {
	close(m.asked)
	<-ctx.Done()
	close(m.stopped)
	return dgm.PutResult{}, ctx.Err()
}

// A process that closes a put while the node is away can be killed; its record is not
// put then.
func TestKilledClose(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	m := &away{session(t, vol), make(chan struct{}), make(chan struct{})}
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	mountOn(t, m, f.dir, "")
	f.put(t, "/q", "k", "first")
	cmd := exec.Command("bash", "-c", `echo second > "$0"`, f.control("q", "k", "put"))
	require.NoError(t, cmd.Start())
	<-m.asked
	require.NoError(t, cmd.Process.Kill())
	<-m.stopped
	require.Error(t, cmd.Wait())
	require.Equal(t, []string{"first"}, f.records(t, "/q", "k"))
}

// A put that makes its file is interrupted as any other, though the file is
// made: the program puts again. The runtime of Go interrupts its threads often.
func TestInterruptedPutThatMakesItsFile(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	m := &interrupted{Manager: session(t, vol)}
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	mountOn(t, m, f.dir, "")
	put, err := os.OpenFile(f.control("q", "k", "put"), os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = put.WriteString("record") // goes on where it is interrupted
	require.NoError(t, err)
	require.NoError(t, put.Close())
	require.True(t, m.done.Load())
	require.Equal(t, []string{"record"}, f.records(t, "/q", "k"))
}
