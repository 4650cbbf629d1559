package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/mount"
)

// What a supervisor tells its worker: by the environment that it is one, and by
// the descriptors from 3 on the socket to talk by, the one for notices, the
// journal and, for all but the first, the connection.
const (
	workerEnv   = "GEARSFS_MOUNT_WORKER"
	workerFirst = "first"
	workerNext  = "next"
	quietEnv    = "GEARSFS_MOUNT_QUIET" // let go of standard error when it is mounted
)

// successor is the worker's side: one in a row of processes that serve a mount.
type successor struct {
	app        *app
	socket     *os.File
	notices    *notices
	succession *mount.Succession
	next       bool // it takes over
	quiet      bool
	serves     bool
}

// successor returns nil where this process was not started by a supervisor.
func (a *app) successor() (*successor, error) {
	mode := a.getenv(workerEnv)
	if mode == "" {
		return nil, nil
	}
	for _, name := range []string{workerEnv, backgroundFD} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	// It was started by a descriptor's path, and bears the name of that.
	if err := os.WriteFile("/proc/self/comm", []byte("gearsfs"), 0); err != nil {
		return nil, fmt.Errorf("take the program's name: %w", err)
	}
	s := &successor{app: a, next: mode == workerNext, quiet: a.getenv(quietEnv) != ""}
	files := make([]*os.File, 3, 4)
	if s.next {
		files = files[:4]
	}
	for i := range files {
		unix.CloseOnExec(3 + i)
		files[i] = os.NewFile(uintptr(3+i), "supervisor")
	}
	s.socket = files[0]
	s.notices = newNotices(files[1])
	var conn *os.File
	if s.next {
		conn = files[3]
	}
	var err error
	if s.succession, err = mount.Succeed(files[2], conn); err != nil {
		return nil, fmt.Errorf("take over the mount: %w", err)
	}
	s.succession.OnBroken(func(error) {
		s.tell(toldLost, nil) //nolint:errcheck // without a supervisor nobody takes over
	})
	return s, nil
}

func (s *successor) tell(what byte, conn *os.File) error {
	var oob []byte
	if conn != nil {
		oob = unix.UnixRights(int(conn.Fd()))
	}
	for {
		err := unix.Sendmsg(int(s.socket.Fd()), []byte{what}, oob, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// attached hands the connection of the new mount to the supervisor, where
// another process can make something of it.
func (s *successor) attached(conn *os.File) error {
	if !s.succession.Resends() {
		return nil
	}
	if err := s.tell(toldAttached, conn); err != nil {
		return fmt.Errorf("hand the connection to the supervisor: %w", err)
	}
	return nil
}

// mounted says that the mount serves. The supervisor may be gone, when this is
// not the first to serve it.
func (s *successor) mounted() error {
	s.serves = true
	if s.quiet {
		if err := silence(); err != nil {
			return err
		}
	}
	if err := s.tell(toldReady, nil); err != nil && !s.next {
		return fmt.Errorf("tell the supervisor: %w", err)
	}
	return nil
}

// failed is how a worker ends. One that has not come to take over must not end
// the session, which the next is to go on with.
func (s *successor) failed(ctx context.Context, err error) error {
	if s == nil || err == nil || !s.next || s.serves || ctx.Err() != nil {
		return err
	}
	fmt.Fprintln(s.app.errs, errorLine("gearsfs mount", err))
	os.Exit(exitFailed)
	return nil
}

// notify sends a notice to the kernel, from the supervisor's process where that
// has the connection.
func (s *successor) notify(notice []byte) error {
	if !s.succession.Resends() {
		return mount.ErrNoSupervisor
	}
	return s.notices.send(notice)
}
