package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// loopbackMount is go-fuse's example, which passes everything on to a directory.
//
// With CAP_SYS_ADMIN it hands the kernel the files that it has opened. With requests
// it runs without that, can't, and answers each READ and WRITE itself. It can't
// mount then either: it gets a connection that is mounted already.
type loopbackMount struct {
	b         *bench
	requests  bool
	at, below string
	cmd       *exec.Cmd
}

var _ mounted = (*loopbackMount)(nil)

func (l *loopbackMount) String() string {
	if l.requests {
		return "loopback, by requests"
	}
	return "loopback"
}

func (l *loopbackMount) start(ctx context.Context) error {
	dirs, err := l.b.mountDirs("loopback-", "mnt", "below")
	if err != nil {
		return err
	}
	l.at, l.below = dirs[0], dirs[1]
	return l.mount(ctx)
}

func (l *loopbackMount) mount(ctx context.Context) error {
	if err := l.serve(); err != nil {
		return err
	}
	for !isMounted(l.at) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// serve starts the example.
func (l *loopbackMount) serve() error {
	program := []string{filepath.Join(l.b.bin, "loopback"), "-q", "-allow-other"}
	if !l.requests {
		l.cmd = exec.Command(program[0], append(program[1:], l.at, l.below)...)
		return l.cmd.Start()
	}
	conn, err := connectionAt(l.at)
	if err != nil {
		return err
	}
	defer conn.Close()
	const firstExtraFile = "/dev/fd/3" // for go-fuse: what is mounted already
	l.cmd = exec.Command("setpriv", append([]string{"--bounding-set=-sys_admin"}, append(program, firstExtraFile, l.below)...)...)
	l.cmd.ExtraFiles = []*os.File{conn}
	if err := l.cmd.Start(); err != nil {
		return errors.Join(err, syscall.Unmount(l.at, syscall.MNT_DETACH))
	}
	return nil
}

// connectionAt mounts a FUSE connection, as fusermount3 does it for the example.
func connectionAt(dir string) (*os.File, error) {
	conn, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	const requestBytesMax = 128 << 10 // the example's
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d,allow_other,default_permissions",
		conn.Fd(), syscall.S_IFDIR, requestBytesMax)
	if err := syscall.Mount("loopback", dir, "fuse.loopback", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), conn.Close())
	}
	return conn, nil
}

func (l *loopbackMount) again(ctx context.Context) error {
	if err := l.end(); err != nil {
		return err
	}
	return l.mount(ctx)
}

// end unmounts; who serves what is not mounted any more ends by itself.
func (l *loopbackMount) end() error { return errors.Join(syscall.Unmount(l.at, 0), l.cmd.Wait()) }

func (l *loopbackMount) dir() string { return l.at }

func (l *loopbackMount) pids() []int { return []int{l.cmd.Process.Pid} }

func (l *loopbackMount) stop() error {
	if l.cmd == nil || l.cmd.Process == nil {
		return nil
	}
	return errors.Join(l.end(), os.RemoveAll(filepath.Dir(l.at)))
}

// isMounted says whether a file system of its own is at dir.
func isMounted(dir string) bool {
	var here, above syscall.Stat_t
	return syscall.Stat(dir, &here) == nil && syscall.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}
