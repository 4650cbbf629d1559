package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs/mount"
)

// A mount is two processes. The supervisor is what was started: it keeps the
// FUSE connection and the journal, and does nothing else. The worker serves the
// mount, and with --data runs the node. When the worker dies another takes over
// what the supervisor keeps (see package mount), from the same program, or after
// SIGUSR2 from the one that is at its path by then:
//
//	         attached, ready        dies, the connection lives
//	start ──────────────────▶ serves ─────────────────────────▶ start again
//	  │ fails                   │ unmounted: status 0             │ too often in a row
//	  ▼                         ▼                                 ▼
//	its status                 end                  detached, and every call fails

// How often, and how soon, a worker is started again that dies.
const (
	steadyAfter   = time.Second // a worker that served so long was of use
	deathsMax     = 12          // in a row of those that were not
	deathsAtOnce  = 3           // of these that are followed by a start at once
	killsMax      = 200         // in a row that do not count as such: by SIGKILL
	restartPause  = 100 * time.Millisecond
	restartMax    = 2 * time.Second
	upgradeSignal = unix.SIGUSR2
)

// supervisor keeps a mount alive.
type supervisor struct {
	app     *app
	dir     string
	ready   readySignal
	journal *os.File
	conn    *os.File // nil before the mount is there, and when nobody may take it over
	lost    bool     // nobody may
	told    bool     // ready is said
	exe     *os.File // what workers run
	before  *os.File // what they ran before the upgrade that is under way
	path    string   // where exe was found, and the next is
}

// supervise mounts and keeps the mount until ctx ends or it is unmounted.
func (a *app) supervise(ctx context.Context, dir string, ready readySignal) error {
	s := &supervisor{app: a, dir: dir, ready: ready}
	var err error
	if s.path, err = os.Executable(); err != nil {
		return fmt.Errorf("start the mount's process: %w", err)
	}
	if s.exe, err = openProgram("/proc/self/exe"); err != nil {
		return fmt.Errorf("start the mount's process: %w", err)
	}
	if s.journal, err = mount.NewJournal(); err != nil {
		return err
	}
	upgrades := make(chan os.Signal, 1)
	signal.Notify(upgrades, upgradeSignal)
	defer signal.Stop(upgrades)
	for deaths, kills := 0, 0; ; {
		w, err := s.start()
		if err != nil && s.revert(err) {
			continue
		}
		if err != nil {
			return s.giveUp(fmt.Errorf("start the mount's process: %w", err))
		}
		end := s.attend(ctx, w, upgrades)
		switch {
		case end.over():
			return s.conclude(end)
		case end.served > steadyAfter || end.upgraded:
			deaths, kills = 0, 0
		case end.killed() && kills < killsMax: // by somebody else
			deaths = min(deaths+1, deathsAtOnce+1)
			kills++
		default:
			deaths++
		}
		if end.served == 0 && !end.upgraded {
			s.revert(fmt.Errorf("%v", end.state))
		}
		if deaths >= deathsMax {
			return s.giveUp(fmt.Errorf("its process has died %d times in a row (%v)", deaths, end.state))
		}
		if !end.upgraded {
			a.notef("the mount's process has died (%v): starting it again", end.state)
		}
		if deaths > deathsAtOnce {
			select {
			case <-time.After(min(restartPause<<(deaths-deathsAtOnce-1), restartMax)):
			case <-ctx.Done():
				return s.giveUp(nil)
			}
		}
	}
}

// revert goes back to the program before an upgrade, because of why.
func (s *supervisor) revert(why error) bool {
	if s.before == nil {
		return false
	}
	s.app.notef("the new program can't serve the mount (%v): going on with the old one", why)
	s.exe, s.before = s.before, nil
	return true
}

func openProgram(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mountProcess is a worker: a process that serves the mount.
type mountProcess struct {
	cmd    *exec.Cmd
	socket *os.File // to it
	notice *os.File // where its notices come; nil once they are sent
	told   chan told
	exited chan struct{}
}

// told is a message of a worker.
type told struct {
	what byte
	conn *os.File // with toldAttached
}

// What a worker tells.
const (
	toldAttached = 'a' // the connection, of a kernel that sends again
	toldReady    = 'r' // the mount serves
	toldLost     = 'l' // nobody can take over any more
)

// start starts a worker.
func (s *supervisor) start() (*mountProcess, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	notice, theirNotice, err := socketPair()
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer theirNotice.Close()
	// By this process's number: in the child others have the descriptor's.
	program := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.exe.Fd())
	cmd := &exec.Cmd{Path: program, Args: slices.Clone(os.Args), Stderr: os.Stderr}
	mode := workerFirst
	cmd.ExtraFiles = []*os.File{theirs, theirNotice, s.journal}
	if s.conn != nil {
		mode = workerNext
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.conn)
	}
	cmd.Env = append(os.Environ(), workerEnv+"="+mode)
	if s.ready.pipe != nil {
		cmd.Env = append(cmd.Env, quietEnv+"=1")
	}
	// Its own group, so that ^C comes to the supervisor alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		ours.Close()
		notice.Close()
		return nil, err
	}
	w := &mountProcess{cmd: cmd, socket: ours, notice: notice, told: make(chan told), exited: make(chan struct{})}
	if s.conn != nil {
		w.sendNotices(s.conn)
	}
	go w.listen() // ends with the process
	go func() {
		cmd.Wait() //nolint:errcheck // ProcessState tells
		close(w.exited)
	}()
	return w, nil
}

func socketPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "supervisor"), nil
}

func (w *mountProcess) sendNotices(conn *os.File) {
	go sendNotices(w.notice, conn) // ends with the process
	w.notice = nil
}

// listen passes on what the worker tells until it is dead.
func (w *mountProcess) listen() {
	defer close(w.told)
	for {
		buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := unix.Recvmsg(int(w.socket.Fd()), buf, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		m := told{what: buf[0]}
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
			if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
				m.conn = os.NewFile(uintptr(fds[0]), "/dev/fuse")
			}
		}
		w.told <- m
	}
}

// ending is how a worker has ended.
type ending struct {
	state    *os.ProcessState
	served   time.Duration // since it was ready; 0 where it never was
	upgraded bool          // it was killed for the next to run another program
	stopped  bool          // it was told to unmount
	live     bool          // the mount is still there, and can be taken over
	err      error         // of saying that it is ready
}

func (e *ending) killed() bool {
	status, ok := e.state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

func (e *ending) over() bool { return e.stopped || !e.live || e.err != nil }

// attend waits until a worker has died.
func (s *supervisor) attend(ctx context.Context, w *mountProcess, upgrades <-chan os.Signal) (e ending) {
	defer w.socket.Close()
	defer func() {
		if w.notice != nil {
			w.notice.Close()
		}
	}()
	var readyAt time.Time
	stop, messages := ctx.Done(), w.told
	terminate := func() {
		e.stopped = true
		w.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		stop = nil
	}
	for messages != nil {
		select {
		case m, ok := <-messages:
			if !ok {
				messages = nil
				break
			}
			if m.what == toldReady {
				readyAt = time.Now()
				s.before = nil
			}
			if e.err = s.hear(w, m); e.err != nil {
				terminate()
			}
		case <-stop:
			terminate()
		case <-upgrades:
			if e.upgraded = s.upgrade(); e.upgraded {
				w.cmd.Process.Kill() //nolint:errcheck // it may have ended
			}
		}
	}
	<-w.exited
	e.state = w.cmd.ProcessState
	if !readyAt.IsZero() {
		e.served = max(time.Since(readyAt), 1)
	}
	e.live = s.conn != nil && connected(s.conn)
	return e
}

// hear does what a worker's message asks for.
func (s *supervisor) hear(w *mountProcess, m told) error {
	switch m.what {
	case toldAttached:
		s.conn = m.conn
		w.sendNotices(s.conn)
	case toldLost:
		s.lost = true
		if s.conn != nil {
			s.conn.Close() //nolint:errcheck // the worker has its own
			s.conn = nil
		}
	case toldReady:
		if !s.told {
			s.told = true
			return s.ready.mounted(s.dir)
		}
	}
	return nil
}

// upgrade finds the program that the next worker is to run. The mount stays as
// it is where there is none, or nobody can take over.
func (s *supervisor) upgrade() bool {
	if s.conn == nil || s.lost {
		s.app.notef("no upgrade: this mount can't be taken over")
		return false
	}
	exe, err := openProgram(s.path)
	if err != nil {
		s.app.notef("no upgrade: %v", err)
		return false
	}
	s.exe, s.before = exe, s.exe
	return true
}

// connected says whether a FUSE connection still has its mount.
func connected(conn *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(conn.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && fds[0].Revents&unix.POLLERR == 0
		}
	}
}

// conclude ends where the last worker has: it has told what there was to tell.
func (s *supervisor) conclude(e ending) error {
	var left error
	if e.live { // it died while it unmounted
		left = s.giveUp(nil)
	}
	status := e.state.ExitCode()
	switch {
	case e.err != nil:
		return errors.Join(e.err, left)
	case status > 0 && left == nil:
		return &toldError{status: status}
	case status < 0 && !e.stopped:
		return fmt.Errorf("the mount's process has died (%v), and nobody can take over", e.state)
	}
	return left
}

// giveUp detaches the mount, so that nothing hangs: when this process has closed
// the connection every call on it fails.
func (s *supervisor) giveUp(why error) error {
	if s.conn == nil {
		return why
	}
	var left error
	if connected(s.conn) {
		left = mount.Detach(s.dir)
	}
	s.conn.Close() //nolint:errcheck // nothing is written that could be lost
	s.conn = nil
	if why != nil {
		why = fmt.Errorf("the mount on %s is given up: %w", s.dir, why)
	}
	return errors.Join(why, left)
}
