package mount

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount/journal"
)

// Succession is what a process that serves a mount has from the one before, and
// leaves to the next. It is made before the Manager, which goes on with the
// session (Lasting), and given to New in the Options.
type Succession struct {
	keeper *keeper
	legacy *legacy
	conn   *os.File // nil for the first
}

// NewJournal makes what the processes that serve a mount one after another hand
// on beside its connection. The caller keeps it open as long as the mount lives.
func NewJournal() (*os.File, error) { return journal.Create("gearsfs-mount") }

// Succeed reads the journal of a mount: conn is its connection, nil where the
// mount is still to be made. Both files stay the caller's. Errors:
// journal.ErrFormat, and one for a journal that a newer version wrote: then it
// is for a process of that version to succeed.
func Succeed(journalFile, conn *os.File) (*Succession, error) {
	j, err := journal.Open(journalFile)
	if err != nil {
		return nil, err
	}
	l, err := readLegacy(j)
	if err == nil && conn != nil && l.birth.init == nil {
		err = fmt.Errorf("%w: it does not say what the mount is", journal.ErrFormat)
	}
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	s := &Succession{keeper: &keeper{log: slog.Default(), journal: j, failed: func(error) {}}, legacy: l, conn: conn}
	s.keeper.compact = compactAt(j)
	if conn != nil {
		l.heirs++
		s.keeper.heir(l.heirs)
	}
	return s, nil
}

func (k *keeper) heir(n uint64) { k.add(encode(start(entryHeir), n)) }

func (s *Succession) takesOver() bool { return s != nil && s.conn != nil }

// Lasting is for the Manager of the mount.
func (s *Succession) Lasting() *dgm.Lasting { return s.legacy.lasting(s.keeper) }

// OnBroken has f called when no process can take the mount over any more. It
// must not block.
func (s *Succession) OnBroken(f func(error)) { s.keeper.failed = f }

// Resends says whether the kernel of the mount can be taken over: it sends again
// what a process was asked that has died (Linux 6.9). Only a mount that New
// has made knows it.
func (s *Succession) Resends() bool { return s.legacy.birth.resends }

// initBytesMax is room for the kernel's INIT, and for the answer.
const initBytesMax = 64 << 10

// connect makes what answers a connection's requests, and returns the flags that
// it has agreed on with the kernel: by the INIT that the kernel has sent, or had
// sent to the process before. The answer goes to the kernel where that waits for it.
func connect(fs fuse.RawFileSystem, conn *os.File, b *birth, opts *fuse.MountOptions) (*fuse.ProtocolServer, uint64, error) {
	first := b.init == nil
	request := b.init
	if first {
		buf := make([]byte, max(initBytesMax, opts.MaxWrite+initBytesMax))
		n, err := readRetry(int(conn.Fd()), buf)
		if err != nil {
			return nil, 0, fmt.Errorf("read INIT: %w", err)
		}
		request = buf[:n]
	}
	kernel := fuse.NewProtocolServer(fs, opts)
	answer := make([]byte, initBytesMax)
	n, st := kernel.HandleRequest([][]byte{request}, [][]byte{answer})
	answer = answer[:n]
	var head fuse.OutHeader
	copy(bytesOf(&head), answer)
	if st == fuse.OK {
		st = fuse.Status(-head.Status)
	}
	if st != fuse.OK {
		return nil, 0, fmt.Errorf("answer INIT: %w", unix.Errno(st))
	}
	flags := agreed(request, answer)
	if first {
		if _, err := unix.Write(int(conn.Fd()), answer); err != nil {
			return nil, 0, fmt.Errorf("answer INIT: %w", err)
		}
		b.agreed(request, flags)
	}
	return kernel, flags, nil
}

func readRetry(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// agreed is what both sides of an INIT can do.
func agreed(request, answer []byte) uint64 {
	var in fuse.InitIn
	var out fuse.InitOut
	copy(bytesOf(&in), request)
	copy(bytesOf(&out), answer[unsafe.Sizeof(fuse.OutHeader{}):])
	return in.Flags64() & (out.Flags64() | fuse.CAP_INIT_EXT)
}

// agreed keeps the kernel's INIT for the next process, which must come to the
// same agreement, so without what was declined.
func (b *birth) agreed(request []byte, flags uint64) {
	var in fuse.InitIn
	copy(bytesOf(&in), request)
	in.Flags, in.Flags2 = uint32(flags), uint32(flags>>32)
	b.init = append([]byte(nil), bytesOf(&in)[:min(len(request), int(unsafe.Sizeof(in)))]...)
	b.resends = flags&fuse.CAP_HAS_RESEND != 0
}

// ErrNoSupervisor says that nobody keeps the mount for another process.
var ErrNoSupervisor = errors.New("the mount has no supervisor")
