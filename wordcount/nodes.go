package wordcount

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A Sender is node A: it sends what is to be counted to another node, and
// serves its own volume over the same connection, under a name that only it
// has. Its methods are safe for concurrent use.
type Sender struct {
	own    *dgm.Local
	node   *dgm.Remote
	remote string
	life   context.Context // ends, with the reason, where Join's worker fails
	close  []func() error  // in order
}

// Connect makes the volume a the sender to the node at addrs. It waits as
// dgm.Dial does and returns its errors. options say who the sender is there;
// what they offer is set by Connect. The Sender must be closed before a.
func Connect(ctx context.Context, a *dgm.Volume, addrs string, options dgm.RemoteOptions) (*Sender, error) {
	own, err := a.Local(dgm.Client{Caller: gearsfs.Root, Process: "wordcount"})
	if err != nil {
		return nil, err
	}
	s := &Sender{
		own: own, remote: "wordcount-" + rand.Text(),
		life: context.Background(), close: []func() error{own.Close},
	}
	options.Offer, options.OfferName, options.OfferAs = a, s.remote, gearsfs.Root
	if s.node, err = dgm.Dial(ctx, addrs, options); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.close = append([]func() error{s.node.Close}, s.close...)
	return s, nil
}

// Join makes two volumes of this process the two nodes: a sends, b counts, in
// one worker, and they are joined by sockets. These are unix sockets in a
// directory of their own, which only this user can enter: a port would let
// everybody on the machine read what is counted. The Sender must be closed
// before the volumes.
func Join(ctx context.Context, a, b *dgm.Volume) (*Sender, error) {
	dir, err := os.MkdirTemp("", "gearsfs")
	if err != nil {
		return nil, fmt.Errorf("wordcount: %w", err)
	}
	path := filepath.Join(dir, "b")
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wordcount: %w", err), os.RemoveAll(dir))
	}
	worker, err := b.Local(dgm.Client{Caller: gearsfs.Root, Process: "wordcount worker"})
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.RemoveAll(dir))
	}
	// What runs beside the sender ends with it, not with ctx.
	running, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var owned sync.WaitGroup
	owned.Go(func() { stop(b.Serve(running, l, nil)) })
	owned.Go(func() { stop(Work(running, worker, WorkOptions{})) })
	end := func() error {
		stop(nil)
		owned.Wait()
		err := context.Cause(running)
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return errors.Join(err, worker.Close(), os.RemoveAll(dir))
	}
	s, err := Connect(ctx, a, "unix:"+path, dgm.RemoteOptions{Client: dgm.Client{Process: "wordcount"}})
	if err != nil {
		return nil, errors.Join(err, end())
	}
	s.life, s.close = running, append(s.close, end)
	return s, nil
}

// Count is Send from this sender.
func (s *Sender) Count(ctx context.Context, in io.Reader, o Options) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(context.Cause(s.life)) })()
	return Send(ctx, s.own, s.node, s.remote, in, o)
}

// Close ends the sender's sessions and what Join started. It waits.
func (s *Sender) Close() error {
	var errs []error
	for _, end := range s.close {
		errs = append(errs, end())
	}
	s.close = nil
	return errors.Join(errs...)
}
