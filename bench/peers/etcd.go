package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/gearsfs/gearsfs/bench/load"
)

// etcdPeer is etcd. It has no queue: its puts are those of new keys, and who
// waits is a watcher. Clients connect to the leader.
type etcdPeer struct {
	urls map[string]string // of the members, by name
}

func (p *etcdPeer) dial(name string) (*clientv3.Client, error) {
	var urls []string
	for _, each := range names(p.urls) {
		if name == "" || name == each {
			urls = append(urls, p.urls[each])
		}
	}
	return clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// setup waits until all members know the leader and answer.
func (p *etcdPeer) setup(ctx context.Context) error {
	c, err := p.dial("")
	if err != nil {
		return err
	}
	defer c.Close()
	return retry(ctx, func(ctx context.Context) error {
		for name, url := range p.urls {
			status, err := c.Status(ctx, url)
			switch {
			case err != nil:
				return err
			case status.Leader == 0 || status.RaftIndex > status.RaftAppliedIndex+100:
				return fmt.Errorf("member %s is behind", name)
			}
		}
		_, err := c.Put(ctx, "ready", "")
		return err
	})
}

func (p *etcdPeer) leader(ctx context.Context) (string, error) {
	c, err := p.dial("")
	if err != nil {
		return "", err
	}
	defer c.Close()
	for name, url := range p.urls {
		status, err := c.Status(ctx, url)
		if err == nil && status.Leader == status.Header.MemberId {
			return name, nil
		}
	}
	return "", errors.New("no member leads")
}

var nextKey atomic.Uint64

// newKey is one that nobody has put.
func newKey() string { return fmt.Sprintf("jobs/%x/%016x", start, nextKey.Add(1)) }

var start = time.Now().UnixNano() // tells the runs of this program apart

// etcdQueue is puts of new keys.
type etcdQueue struct {
	*etcdPeer
	work   load.Work
	server string // that leads
}

func (p *etcdPeer) queue(ctx context.Context, w load.Work) (load.Queue, error) {
	leader, err := p.leader(ctx)
	return &etcdQueue{p, w, leader}, err
}

func (q *etcdQueue) Current(context.Context) error { return nil }

func (q *etcdQueue) Putter(ctx context.Context) (load.Putter, error) {
	c, err := q.dial(q.server)
	if err != nil {
		return nil, err
	}
	if _, err := c.Get(ctx, "ready"); err != nil { // connects
		return nil, err
	}
	return &etcdPutter{c, q.work.Single, string(q.work.Payload())}, nil
}

type etcdPutter struct {
	*clientv3.Client
	single bool
	value  string
}

func (c *etcdPutter) Put(ctx context.Context, n int) error {
	if n == 1 {
		_, err := c.Client.Put(ctx, newKey(), c.value)
		return err
	}
	if !c.single {
		return c.Fill(ctx, n)
	}
	group, ctx := errgroup.WithContext(ctx)
	for range n {
		group.Go(func() error {
			_, err := c.Client.Put(ctx, newKey(), c.value)
			return err
		})
	}
	return group.Wait()
}

func (c *etcdPutter) Fill(ctx context.Context, n int) error {
	ops := make([]clientv3.Op, n)
	for i := range ops {
		ops[i] = clientv3.OpPut(newKey(), c.value)
	}
	_, err := c.Txn(ctx).Then(ops...).Commit()
	return err
}

func (c *etcdPutter) Waiting(context.Context) (bool, error) { return true, nil }

// Taker watches.
func (q *etcdQueue) Taker(ctx context.Context) (load.Taker, error) {
	c, err := q.dial(q.server)
	if err != nil {
		return nil, err
	}
	t := &etcdTaker{Client: c, watch: c.Watch(ctx, "jobs/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())}
	<-t.watch
	return t, nil
}

// etcdTaker is told of puts, and takes nothing.
type etcdTaker struct {
	*clientv3.Client
	watch clientv3.WatchChan
}

func (t *etcdTaker) Take(context.Context, int) (int, error) {
	answer := <-t.watch
	return len(answer.Events), answer.Err()
}

func (t *etcdTaker) Ack(context.Context) error        { return nil }
func (t *etcdTaker) Chain(context.Context, int) error { return errors.ErrUnsupported }

func (p *etcdPeer) putter(ctx context.Context) (func(ctx context.Context) error, func(), error) {
	c, err := p.dial("")
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := c.Put(ctx, newKey(), string(payload))
		return err
	}, func() { c.Close() }, nil //nolint:errcheck // nothing is under way
}
