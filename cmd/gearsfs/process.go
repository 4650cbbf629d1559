package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
	"golang.org/x/sys/unix"
)

// process is a command that runs in a process group of its own, so that it can
// be killed with all that it has started.
type process struct {
	cmd *exec.Cmd

	// nonstop says that whatever stops the command is undone: there is no shell
	// that knows of it and could go on with it.
	nonstop bool

	mu     sync.Mutex
	why    error // why it was killed
	reaped bool  // its id, and that of its group, may be another's
}

// startProcess starts cmd. It dies with this process.
func startProcess(cmd *exec.Cmd) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd}, nil
}

// kill kills the process group, because of why; the first reason counts.
func (p *process) kill(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.why == nil && !p.reaped {
		p.why = why
	}
	p.signalLocked(syscall.SIGKILL)
}

// signal sends a signal to the process group.
func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signalLocked(s)
}

func (p *process) signalLocked(s syscall.Signal) {
	if !p.reaped {
		unix.Kill(-p.cmd.Process.Pid, s) //nolint:errcheck // it may have ended
	}
}

// wait waits until the command has ended; with sweep it then kills what that
// has left running in its group. It returns the exit status, 128+n by a signal,
// and why it was killed, if it was.
func (p *process) wait(sweep bool) (status int, why error) {
	p.await()
	p.mu.Lock()
	defer p.mu.Unlock()
	if sweep {
		p.signalLocked(syscall.SIGKILL)
	}
	p.cmd.Wait() //nolint:errcheck // its status is in ProcessState
	p.reaped = true
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitSignal + int(ws.Signal()), p.why
	}
	return p.cmd.ProcessState.ExitCode(), p.why
}

// await waits until the command has ended, and leaves it to be reaped: until
// then nobody else has its id.
func (p *process) await() {
	options := unix.WEXITED | unix.WNOWAIT
	if p.nonstop {
		options |= unix.WSTOPPED
	}
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && info.Code == cldStopped:
			p.signal(syscall.SIGCONT)
			unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOHANG, nil) //nolint:errcheck // it goes on already
		default:
			return
		}
	}
}

// cldStopped is CLD_STOPPED of waitid(2).
const cldStopped = 5

// The statuses that shells and env(1) give to commands that can't be run.
const (
	exitCantRun  = 126
	exitNotFound = 127
)

// notRunError says that a command could not be started.
type notRunError struct {
	name string
	err  error
}

func (e *notRunError) Error() string { return "COMMAND " + e.name + ": " + e.err.Error() }
func (e *notRunError) Unwrap() error { return e.err }

// status is the exit status of a command that is nothing but the one that could
// not be run.
func (e *notRunError) status() int {
	if errors.Is(e.err, os.ErrNotExist) || errors.Is(e.err, exec.ErrNotFound) {
		return exitNotFound
	}
	return exitCantRun
}

// lookCommand finds a COMMAND, as a shell would.
func lookCommand(name string) (string, error) {
	if name == "" {
		return "", usagef("COMMAND is empty")
	}
	path, err := exec.LookPath(name)
	if e, ok := errors.AsType[*exec.Error](err); ok {
		err = e.Err
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	if err != nil {
		return "", &notRunError{name, err}
	}
	return path, nil
}

// capture reads what a command writes to one of its streams, up to what fits
// into a record.
type capture struct {
	from, to *os.File // the ends of a pipe; to is the command's
	ended    chan struct{}
	data     []byte // valid when ended is closed, as is the rest
	tooMuch  bool
	err      error
}

// captureGrace is how long a pipe is read that somebody else than the command's
// group still holds open.
const captureGrace = 200 * time.Millisecond

func newCapture() (*capture, error) {
	from, to, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("a pipe for the output: %w", err)
	}
	return &capture{from: from, to: to, ended: make(chan struct{})}, nil
}

// drop closes a capture whose command was not started.
func (c *capture) drop() {
	c.from.Close()
	c.to.Close()
}

// start begins to read, once the command runs; finish must follow. giveUp is called when there is
// more than a record may have; the rest is not read.
func (c *capture) start(giveUp func(why error)) {
	c.to.Close()
	go func() {
		defer close(c.ended)
		c.data, c.err = io.ReadAll(io.LimitReader(c.from, gearsfs.RecordBytesMax+1))
		if len(c.data) > gearsfs.RecordBytesMax {
			c.data, c.tooMuch = nil, true
			giveUp(c.why())
		}
	}()
}

// why is why what was written can't be had, or nil.
func (c *capture) why() error {
	if c.tooMuch {
		return failuref("wrote more than the %d MiB that a record may have", gearsfs.RecordBytesMax>>20)
	}
	return nil
}

// finish returns what was written, when the command has ended.
func (c *capture) finish() ([]byte, error) {
	defer c.from.Close()
	select {
	case <-c.ended:
	default:
		if err := c.from.SetReadDeadline(time.Now().Add(captureGrace)); err != nil {
			return nil, fmt.Errorf("read the output: %w", err)
		}
		<-c.ended
	}
	if c.err != nil && !errors.Is(c.err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("read the output: %w", c.err)
	}
	return c.data, nil
}
