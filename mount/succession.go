package mount

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"sync"
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
	s.keeper.compact = compactMin + 4*j.Size()
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

// connect makes a go-fuse server for a connection. go-fuse reads INIT from the
// descriptor that it is given, and only once: so it gets a socket first, with
// the INIT that the kernel has sent or had sent, and then the connection in the
// socket's place. The answer goes to the kernel where that waits for it.
func connect(fs fuse.RawFileSystem, conn *os.File, b *birth, opts *fuse.MountOptions) (*fuse.Server, error) {
	first := b.init == nil
	request := b.init
	if first {
		buf := make([]byte, max(initBytesMax, opts.MaxWrite+initBytesMax))
		n, err := readRetry(int(conn.Fd()), buf)
		if err != nil {
			return nil, fmt.Errorf("read INIT: %w", err)
		}
		request = buf[:n]
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[1])
	if _, err := unix.Write(pair[1], request); err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("hand INIT on: %w", err)
	}
	kernel, err := fuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", pair[0]), opts) // closes it where it fails
	if err != nil {
		return nil, err
	}
	answer := make([]byte, initBytesMax)
	n, err := readRetry(pair[1], answer)
	if err == nil && first {
		if _, err = unix.Write(int(conn.Fd()), answer[:n]); err == nil {
			b.agreed(request, answer[:n])
		}
	}
	if err == nil {
		err = residentReads(kernel)
	}
	if err == nil {
		err = unix.Dup3(int(conn.Fd()), pair[0], unix.O_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("answer INIT: %w", err) // the descriptor goes with the process
	}
	return kernel, nil
}

// residentReads makes go-fuse read requests into memory that is there. A thread
// that waits for a request while its process is killed still reads one that
// comes: into memory that is there, and the request is sent again to the next
// process. Where a page is missing the kernel can't bring it for a dying thread
// and fails the request, which nobody has seen, with EIO.
func residentReads(kernel *fuse.Server) error {
	field := reflect.ValueOf(kernel).Elem().FieldByName("readPool") // there is no way in that is exported
	if !field.IsValid() || field.Type() != reflect.TypeFor[sync.Pool]() {
		return errors.New("this version of go-fuse keeps the buffers that it reads into elsewhere")
	}
	pool := (*sync.Pool)(field.Addr().UnsafePointer())
	fresh := pool.New
	*pool = sync.Pool{New: func() any { // and without what it held
		buf := fresh()
		if b, ok := buf.([]byte); ok {
			for page := unix.Getpagesize(); len(b) > 0; b = b[min(page, len(b)):] {
				b[0], b[min(page, len(b))-1] = 0, 0
			}
		}
		return buf
	}}
	return nil
}

func readRetry(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// agreed keeps the kernel's INIT for the next process, which must come to the
// same agreement, so without what was declined.
func (b *birth) agreed(request, answer []byte) {
	const header = 16 // of an answer
	var in fuse.InitIn
	var out fuse.InitOut
	copy(bytesOf(&in), request)
	if len(answer) > header {
		copy(bytesOf(&out), answer[header:])
	}
	flags := in.Flags64() & (out.Flags64() | fuse.CAP_INIT_EXT)
	in.Flags, in.Flags2 = uint32(flags), uint32(flags>>32)
	b.init = append([]byte(nil), bytesOf(&in)[:min(len(request), int(unsafe.Sizeof(in)))]...)
	b.resends = out.Flags64()&fuse.CAP_HAS_RESEND != 0
}

// ErrNoSupervisor says that nobody keeps the mount for another process.
var ErrNoSupervisor = errors.New("the mount has no supervisor")
