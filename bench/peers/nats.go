package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/gearsfs/gearsfs/bench/load"
)

const (
	stream   = "jobs"
	subject  = "jobs.k"
	consumer = "workers"
	// atomicStream takes batches that are stored whole or not at all.
	atomicStream  = "batches"
	atomicSubject = "batches.k"
)

const (
	// prefetch is how many messages a consumer asks for ahead. With 1, and with
	// 100, it took half to three quarters as many a second as with 16.
	prefetch = 16
	// emptyTime is how long it waits for one before there are none left.
	emptyTime = 5 * time.Second
)

// natsPeer is NATS JetStream: a work queue in files, replicated by all servers,
// with a durable pull consumer that acknowledges explicitly. Clients connect to
// the server that leads what they use, which saves them a hop.
type natsPeer struct {
	urls map[string]string // of the servers, by name
}

func (p *natsPeer) dial(name string) (*nats.Conn, error) {
	urls := p.urls[name]
	if name == "" {
		for _, url := range p.urls {
			urls += "," + url
		}
		urls = urls[1:]
	}
	return nats.Connect(urls, nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 0), nats.MaxReconnects(-1))
}

// admin calls f with a connection to any server.
func (p *natsPeer) admin(ctx context.Context, f func(js jetstream.JetStream) error) error {
	var nc *nats.Conn
	err := retry(ctx, func(context.Context) (err error) {
		nc, err = p.dial("")
		return err
	})
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	return f(js)
}

// setup makes the streams and the consumer anew, all of them empty.
func (p *natsPeer) setup(ctx context.Context) error {
	return p.admin(ctx, func(js jetstream.JetStream) error {
		for _, cfg := range []jetstream.StreamConfig{
			{Name: stream, Subjects: []string{subject}},
			{Name: atomicStream, Subjects: []string{atomicSubject}, AllowAtomicPublish: true},
		} {
			cfg.Retention, cfg.Storage, cfg.Replicas = jetstream.WorkQueuePolicy, jetstream.FileStorage, len(p.urls)
			if err := retry(ctx, func(ctx context.Context) error {
				if err := js.DeleteStream(ctx, cfg.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
					return err
				}
				_, err := js.CreateStream(ctx, cfg)
				return err
			}); err != nil {
				return fmt.Errorf("make stream %s: %w", cfg.Name, err)
			}
		}
		err := retry(ctx, func(ctx context.Context) error {
			_, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
				Durable: consumer, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 100_000, MaxWaiting: 1024,
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("make consumer: %w", err)
		}
		return retry(ctx, func(ctx context.Context) error { return p.current(ctx, js) })
	})
}

// current returns nil when all replicas are up to date.
func (p *natsPeer) current(ctx context.Context, js jetstream.JetStream) error {
	s, err := js.Stream(ctx, stream)
	if err != nil || len(p.urls) == 1 {
		return err
	}
	group := s.CachedInfo().Cluster
	if group == nil || group.Leader == "" || len(group.Replicas) != len(p.urls)-1 {
		return errors.New("the stream has no leader")
	}
	for _, replica := range group.Replicas {
		if !replica.Current || replica.Offline || replica.Lag > 0 {
			return fmt.Errorf("replica %s is behind", replica.Name)
		}
	}
	return nil
}

func (p *natsPeer) leader(ctx context.Context) (name string, err error) {
	if len(p.urls) == 1 {
		return names(p.urls)[0], nil
	}
	err = p.admin(ctx, func(js jetstream.JetStream) error {
		s, err := js.Stream(ctx, stream)
		if err == nil {
			name = s.CachedInfo().Cluster.Leader
		}
		return err
	})
	return name, err
}

// leads returns the server that leads a stream, or its consumer.
func (p *natsPeer) leads(ctx context.Context, ofConsumer bool) (name string, err error) {
	if !ofConsumer || len(p.urls) == 1 {
		return p.leader(ctx)
	}
	err = p.admin(ctx, func(js jetstream.JetStream) error {
		c, err := js.Consumer(ctx, stream, consumer)
		if err == nil {
			name = c.CachedInfo().Cluster.Leader
		}
		return err
	})
	return name, err
}

// natsQueue is the stream, anew.
type natsQueue struct {
	*natsPeer
	work load.Work
}

func (p *natsPeer) queue(ctx context.Context, w load.Work) (load.Queue, error) {
	return &natsQueue{p, w}, p.setup(ctx)
}

func (q *natsQueue) Current(ctx context.Context) error {
	return q.admin(ctx, func(js jetstream.JetStream) error {
		return retry(ctx, func(ctx context.Context) error { return q.current(ctx, js) })
	})
}

func (q *natsQueue) connect(ctx context.Context, take bool) (nc *nats.Conn, js jetstream.JetStream, err error) {
	server, err := q.leads(ctx, take)
	if err != nil {
		return nil, nil, err
	}
	if nc, err = q.dial(server); err != nil {
		return nil, nil, err
	}
	js, err = jetstream.New(nc)
	return nc, js, err
}

func (q *natsQueue) Putter(ctx context.Context) (load.Putter, error) {
	nc, js, err := q.connect(ctx, false)
	return &natsPutter{nc: nc, js: js, single: q.work.Single, data: q.work.Payload()}, err
}

type natsPutter struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	single bool
	data   []byte
}

func (c *natsPutter) Close() error {
	c.nc.Close()
	return nil
}

func (c *natsPutter) Put(ctx context.Context, n int) error {
	switch {
	case n == 1:
		_, err := c.js.Publish(ctx, subject, c.data)
		return err
	case c.single:
		return c.publish(n)
	}
	return c.publishAtomic(ctx, n)
}

func (c *natsPutter) Fill(_ context.Context, n int) error { return c.publish(n) }

func (c *natsPutter) Waiting(ctx context.Context) (bool, error) {
	consumer, err := c.js.Consumer(ctx, stream, consumer)
	if err != nil {
		return false, err
	}
	return consumer.CachedInfo().NumWaiting > 0, nil
}

// publish sends n messages and waits for the acknowledgements of all.
func (c *natsPutter) publish(n int) error {
	futures := make([]jetstream.PubAckFuture, n)
	for i := range futures {
		var err error
		if futures[i], err = c.js.PublishAsync(subject, c.data); err != nil {
			return err
		}
	}
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			return err
		}
	}
	return nil
}

// publishAtomic sends n messages that are stored whole or not at all: NATS's
// ADR-50.
func (c *natsPutter) publishAtomic(ctx context.Context, n int) error {
	id := nuid.Next()
	for i := range n {
		m := nats.NewMsg(atomicSubject)
		m.Data = c.data
		m.Header.Set("Nats-Batch-Id", id)
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < n-1 {
			if err := c.nc.PublishMsg(m); err != nil {
				return err
			}
			continue
		}
		m.Header.Set("Nats-Batch-Commit", "1")
		answer, err := c.nc.RequestMsgWithContext(ctx, m)
		if err != nil {
			return err
		}
		var ack struct {
			Error *struct{ Description string }
			Count int
		}
		if err := json.Unmarshal(answer.Data, &ack); err != nil {
			return err
		}
		if ack.Error != nil || ack.Count != n {
			return fmt.Errorf("a batch of %d: %s", n, answer.Data)
		}
	}
	return nil
}

// Taker asks for messages ahead, but where it is to be woken by one.
func (q *natsQueue) Taker(ctx context.Context) (load.Taker, error) {
	nc, js, err := q.connect(ctx, true)
	if err != nil {
		return nil, err
	}
	t := &natsTaker{nc: nc, inbox: nc.NewInbox()}
	if t.acks, err = nc.SubscribeSync(t.inbox); err != nil {
		return nil, err
	}
	if t.consumer, err = js.Consumer(ctx, stream, consumer); err != nil {
		return nil, err
	}
	if q.work.Do != load.Wake {
		t.messages, err = t.consumer.Messages(jetstream.PullMaxMessages(max(prefetch, 2*q.work.Batch)))
	}
	return t, err
}

type natsTaker struct {
	nc       *nats.Conn
	consumer jetstream.Consumer
	messages jetstream.MessagesContext // nil where nothing is asked for ahead
	inbox    string                    // for confirmations
	acks     *nats.Subscription        // on inbox
	leased   []jetstream.Msg
}

func (t *natsTaker) Close() error {
	if t.messages != nil {
		t.messages.Stop()
	}
	t.nc.Close()
	return nil
}

func (t *natsTaker) Take(_ context.Context, n int) (int, error) {
	t.leased = t.leased[:0]
	if t.messages == nil {
		batch, err := t.consumer.Fetch(n)
		if err != nil {
			return 0, err
		}
		for m := range batch.Messages() {
			t.leased = append(t.leased, m)
		}
		if len(t.leased) == 0 {
			return 0, errors.Join(errors.New("no message came"), batch.Error())
		}
		return len(t.leased), batch.Error()
	}
	for range n {
		m, err := t.messages.Next(jetstream.NextMaxWait(emptyTime))
		if errors.Is(err, nats.ErrTimeout) {
			return 0, load.ErrEmpty // the others have the rest
		}
		if err != nil {
			return 0, err
		}
		t.leased = append(t.leased, m)
	}
	return n, nil
}

// Ack has messages acknowledged for sure: the server confirms each
// acknowledgement when it is replicated.
func (t *natsTaker) Ack(ctx context.Context) error {
	for _, m := range t.leased {
		if err := t.nc.PublishRequest(m.Reply(), t.inbox, []byte("+ACK")); err != nil {
			return err
		}
	}
	for range t.leased {
		if _, err := t.acks.NextMsgWithContext(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Chain is as Take and Ack, for the next messages are here already.
func (t *natsTaker) Chain(ctx context.Context, n int) error {
	if _, err := t.Take(ctx, n); err != nil {
		return err
	}
	return t.Ack(ctx)
}

// payload is what is put in failovers.
var payload = make([]byte, load.RecordBytes)

func (p *natsPeer) putter(ctx context.Context) (func(ctx context.Context) error, func(), error) {
	nc, err := p.dial("")
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := js.Publish(ctx, subject, payload, jetstream.WithRetryAttempts(0))
		return err
	}, nc.Close, nil
}

// names returns the servers' names in order.
func names(urls map[string]string) []string {
	var all []string
	for name := range urls {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
