package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount"
)

// dialTimeout bounds how long a command looks for its node.
const dialTimeout = 5 * time.Second

// settleTimeout bounds what a command that was told to stop still does to
// give back what it holds.
const settleTimeout = 5 * time.Second

// app is one run of gearsfs: its standard streams, its surroundings and the
// nodes that it talks to. It is used by one goroutine, but for retrying.
type app struct {
	in     io.Reader
	out    io.Writer
	errs   io.Writer
	getenv func(string) string
	umask  uint32
	dial   func(ctx context.Context, addrs string) (dgm.Manager, error)
	locate func(path string) (mount.Location, error)

	managers map[string]dgm.Manager // by address, open until close

	// onSignal, where it is set, is asked first what to do about a signal, and
	// says whether that was all.
	onSignal atomic.Pointer[func(s syscall.Signal) bool]

	sweep   sync.Once  // of what killed workers have left
	printMu sync.Mutex // held while what belongs together is written

	noteMu sync.Mutex
	noted  time.Time // when a lost node was last told of
}

func newApp() *app {
	a := &app{
		in: os.Stdin, out: os.Stdout, errs: os.Stderr,
		getenv: os.Getenv, umask: processUmask(),
		locate:   mount.Locate,
		managers: make(map[string]dgm.Manager),
	}
	a.dial = a.dialNode
	return a
}

// dialNode connects to a node. It says on standard error when the node is lost
// and being looked for.
func (a *app) dialNode(ctx context.Context, addrs string) (dgm.Manager, error) {
	o, err := a.remoteOptions()
	if err != nil {
		return nil, err
	}
	return dgm.Dial(ctx, addrs, o)
}

func (a *app) remoteOptions() (dgm.RemoteOptions, error) {
	config, err := node.TLSFiles{
		Cert: a.getenv("GEARSFS_TLS_CERT"), Key: a.getenv("GEARSFS_TLS_KEY"), CA: a.getenv("GEARSFS_TLS_CA"),
	}.Config()
	if err != nil {
		return dgm.RemoteOptions{}, err
	}
	return node.ClientOptions("gearsfs", config, a.retrying), nil
}

// retryNoteEvery is how often a lost node is worth a line.
const retryNoteEvery = 5 * time.Second

// retrying says that the node is lost and looked for. It is called on any
// goroutine, for each attempt.
func (a *app) retrying(err error) {
	a.noteMu.Lock()
	defer a.noteMu.Unlock()
	if now := time.Now(); now.Sub(a.noted) >= retryNoteEvery {
		a.noted = now
		a.notef("%v: trying again", err)
	}
}

// waitedFor says of a wait that --wait ended in vain where the node was lost in it.
func (a *app) waitedFor(err error) error {
	a.noteMu.Lock()
	defer a.noteMu.Unlock()
	if _, ok := errors.AsType[*waitError](err); ok && !a.noted.IsZero() {
		return fmt.Errorf("%w: the node was lost meanwhile", err)
	}
	return err
}

// notef writes a line that is no result to standard error.
func (a *app) notef(format string, args ...any) {
	fmt.Fprintln(a.errs, "gearsfs: "+oneLine(fmt.Sprintf(format, args...)))
}

// printf writes to standard output.
func (a *app) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.out, format, args...); err != nil {
		return outputError(err)
	}
	return nil
}

// manager returns the session with the node at addrs, opened when first used.
func (a *app) manager(ctx context.Context, addrs string) (dgm.Manager, error) {
	if m := a.managers[addrs]; m != nil {
		return m, nil
	}
	for {
		m, err := a.dialOnce(ctx, addrs)
		if err == nil {
			a.managers[addrs] = m
			return m, nil
		}
		if _, bounded := ctx.Deadline(); !bounded || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return nil, dialError(ctx, addrs, err)
		}
		a.retrying(gearsfs.ErrNoNode.Because("no answer from %s within %s", addrs, dialTimeout)) // --wait says how long
	}
}

func (a *app) dialOnce(ctx context.Context, addrs string) (dgm.Manager, error) {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return a.dial(dialing, addrs)
}

// dialError says what it means that the node at addrs was not reached.
func dialError(ctx context.Context, addrs string, err error) error {
	switch {
	case errors.Is(err, gearsfs.ErrInvalid):
		return usagef("%v", err)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return gearsfs.ErrNoNode.Because("no answer from %s within %s", addrs, dialTimeout)
	}
	return cause(ctx, err)
}

// close ends the sessions, so that what is still leased goes back.
func (a *app) close() error {
	var errs []error
	for _, m := range a.managers {
		errs = append(errs, m.Close())
	}
	a.managers = nil
	return errors.Join(errs...)
}
