package mount

import (
	"bytes"
	"log/slog"
	"os"
	"sync"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asker is the kernel's side of a connection.
type asker struct {
	t       *testing.T
	conn    *os.File
	readers *readers
	served  chan struct{}
	unique  uint64
}

// askedFS tells of each GETATTR that has come, and answers it when it is let go.
type askedFS struct {
	fuse.RawFileSystem
	came  chan uint64
	let   map[uint64]chan struct{} // by node; others are answered at once
	ended chan uint64              // the nodes of those that were interrupted
}

func (f *askedFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, _ *fuse.AttrOut) fuse.Status {
	f.came <- in.NodeId
	select {
	case <-f.let[in.NodeId]:
	case <-cancel:
		f.ended <- in.NodeId
		return fuse.EINTR
	}
	return fuse.OK
}

func (f *askedFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	for i := range buf {
		buf[i] = byte(in.NodeId)
	}
	return fuse.ReadResultData(buf), fuse.OK
}

// newAsker connects to readers of f, for all of whose requests brief holds.
func newAsker(t *testing.T, f *askedFS, brief bool) *asker {
	f.RawFileSystem = fuse.NewDefaultRawFileSystem()
	f.came, f.ended = make(chan uint64, 64), make(chan uint64, 64)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)) // the longest answer is one packet
	conn, here := os.NewFile(uintptr(pair[0]), "connection"), os.NewFile(uintptr(pair[1]), "kernel")
	in := fuse.InitIn{InHeader: fuse.InHeader{Opcode: 26, Unique: 1}, Major: 7, Minor: 40}
	in.Length = uint32(unsafe.Sizeof(in))
	server, _, err := connect(f, conn, &birth{init: bytesOf(&in)}, &fuse.MountOptions{MaxWrite: writeMax})
	require.NoError(t, err)
	a := &asker{t: t, conn: here, served: make(chan struct{})}
	a.readers = newReaders(pair[0], server, writeMax, func() bool { return brief }, slog.New(slog.DiscardHandler))
	go func() {
		a.readers.serve()
		close(a.served)
	}()
	hangUp := sync.OnceFunc(func() {
		here.Close()
		<-a.served
		conn.Close()
	})
	t.Cleanup(hangUp)
	return a
}

// ask sends a GETATTR of a node from a thread.
func (a *asker) ask(node uint64, thread uint32) {
	a.unique += 2
	in := fuse.GetAttrIn{InHeader: fuse.InHeader{Opcode: opGetAttr, Unique: a.unique, NodeId: node}}
	in.Pid = thread
	in.Length = uint32(unsafe.Sizeof(in))
	_, err := a.conn.Write(bytesOf(&in))
	require.NoError(a.t, err)
}

// answer returns the next answer and what comes behind its header.
func (a *asker) answer() (fuse.OutHeader, []byte) {
	buf := make([]byte, 2<<20)
	n, err := a.conn.Read(buf)
	require.NoError(a.t, err)
	var head fuse.OutHeader
	require.Equal(a.t, int(unsafe.Sizeof(head)), copy(bytesOf(&head), buf[:n]))
	require.EqualValues(a.t, n, head.Length)
	return head, buf[unsafe.Sizeof(head):n]
}

// alone has a thread ask until it counts as alone.
func (a *asker) alone(f *askedFS, thread uint32) {
	for range 2*rowLeast + waitingMax {
		a.ask(1, thread)
		<-f.came
		a.answer()
	}
}

func (a *asker) state() (waiting int, kept bool) {
	a.readers.mu.Lock()
	defer a.readers.mu.Unlock()
	return a.readers.waiting, a.readers.kept
}

func free() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// While a thread is alone nobody waits in the kernel beside the one who answers it.
func TestALoneThreadHasOneReader(t *testing.T) {
	f := &askedFS{let: map[uint64]chan struct{}{1: free(), 2: make(chan struct{})}}
	a := newAsker(t, f, true)
	a.alone(f, 7)
	a.readers.mu.Lock() // the watch does not come in between
	a.readers.watch.Stop()
	a.readers.armed = true
	a.readers.mu.Unlock()
	a.ask(2, 7)
	<-f.came
	waiting, kept := a.state()
	assert.Zero(t, waiting)
	assert.True(t, kept)
	close(f.let[2])
	a.answer()
	a.ask(1, 7)
	a.answer()
}

// A request of another thread is read while the handler of a first one waits, which
// was not expected to.
func TestAHandlerThatWaitsIsWorkedAround(t *testing.T) {
	f := &askedFS{let: map[uint64]chan struct{}{1: free(), 2: make(chan struct{})}}
	a := newAsker(t, f, true)
	for range 3 {
		a.alone(f, 7)
		a.ask(2, 7)
		require.EqualValues(t, 2, <-f.came)
		slow := a.unique
		for thread := range uint32(3) {
			a.ask(1, 10+thread)
			require.EqualValues(t, 1, <-f.came)
			head, _ := a.answer()
			assert.Equal(t, a.unique, head.Unique)
		}
		f.let[2] <- struct{}{}
		head, _ := a.answer()
		assert.Equal(t, slow, head.Unique)
	}
}

// Requests of several threads, and those that wait for others, are read while those
// in front of them are handled, at once.
func TestSeveralThreadsHaveReaders(t *testing.T) {
	for _, brief := range []bool{true, false} {
		f := &askedFS{let: map[uint64]chan struct{}{1: free(), 2: make(chan struct{})}}
		a := newAsker(t, f, brief)
		a.alone(f, 7)
		thread := uint32(7)
		if brief {
			thread = 8
		}
		for n := range 40 {
			a.ask(2, thread)
			require.EqualValues(t, 2, <-f.came)
			waiting, kept := a.state()
			assert.Positive(t, waiting, "request %d", n)
			assert.LessOrEqual(t, waiting, waitingMax)
			assert.False(t, kept)
			if brief {
				thread++
			}
		}
		close(f.let[2])
		seen := map[uint64]bool{}
		for range 40 {
			head, _ := a.answer()
			seen[head.Unique] = true
		}
		assert.Len(t, seen, 40)
		a.alone(f, 7)
	}
}

// What waits when the connection ends is interrupted, and serve waits for it: also a
// handler that was not expected to wait.
func TestTheEndInterruptsWhatWaits(t *testing.T) {
	f := &askedFS{let: map[uint64]chan struct{}{1: free()}}
	a := newAsker(t, f, true)
	a.alone(f, 7)
	for node := range uint64(5) {
		a.ask(node+2, uint32(node)) // 0 is the kernel's own
		<-f.came
	}
	require.NoError(t, a.conn.Close())
	<-a.served
	close(f.ended)
	var ended []uint64
	for node := range f.ended {
		ended = append(ended, node)
	}
	assert.ElementsMatch(t, []uint64{2, 3, 4, 5, 6}, ended)
}

// An answer may be as long as was asked for, and what can't be understood is
// answered, too.
func TestAnswersOfAllSizes(t *testing.T) {
	f := &askedFS{let: map[uint64]chan struct{}{1: free()}}
	a := newAsker(t, f, true)
	for _, size := range []int{0, 1, 100, 4096, 8191, 8192, 8193, 16 << 10, 128 << 10, 128<<10 + 1, 1<<20 - 1, 1 << 20} {
		in := fuse.ReadIn{InHeader: fuse.InHeader{Opcode: opRead, Unique: 9, NodeId: 3}, Size: uint32(size)}
		in.Length = uint32(unsafe.Sizeof(in))
		_, err := a.conn.Write(bytesOf(&in))
		require.NoError(t, err)
		head, data := a.answer()
		require.Zero(t, head.Status, "%d bytes", size)
		require.Len(t, data, size)
		require.Equal(t, size, bytes.Count(data, []byte{3}))
	}
	in := fuse.InHeader{Opcode: opSetAttr, Unique: 11, Length: uint32(unsafe.Sizeof(fuse.InHeader{}))} // too short
	_, err := a.conn.Write(bytesOf(&in))
	require.NoError(t, err)
	head, _ := a.answer()
	assert.EqualValues(t, -int32(unix.EIO), head.Status)
	assert.EqualValues(t, 11, head.Unique)
	a.alone(f, 7)
}
