// Package notify tells customers by mail, and partners by webhook, what became of an order: two channels of one mechanism.
//
//	topic ──▶ cdc/inbox, a group for each channel         Sender, one or more for each channel
//	            BEGIN                                        lease a PENDING row        FOR UPDATE SKIP LOCKED
//	              inbox row                                  mail: render it            catalog away: wait, it is no attempt
//	              notifications row:                         begin an attempt           a row of notification_attempts
//	              PENDING, or SUPPRESSED and why             SMTP or HTTP
//	            COMMIT, then the offset                      record the answer:         SENT, FAILED, or PENDING and later again
//
// Rules:
//
//   - A consumer never talks to a mail server: whether one answers or stalls, no offset waits for it.
//   - (order, channel, kind) is the natural key. However often events come, are replayed or notifications re-published, a second send after a
//     success is impossible: what is SENT stays so.
//   - An attempt is counted before it is made. At most 5 are; what the server may fix by itself (SMTP 4xx, a connection that fails, HTTP 5xx,
//     408, 425 and 429) is tried again after a random time that doubles, what it refuses (SMTP 5xx to the mail, other HTTP 4xx) is FAILED at once.
//     What a mail server says before it sees the mail (greeting, TLS, AUTH) is about us, and tried again whatever its code.
//   - What is FAILED becomes PENDING again by itself, with all its attempts, until it is too old: in every round what ran out of attempts, at
//     doubling intervals what was refused or could not be made. `orders mail retry` does not wait.
//   - A mail is rendered whole, from the order's event, the customer's settings (orders database) and the products' names (inventory database),
//     and kept as it was sent.
//
// # The one window
//
// SMTP has no way to ask whether a mail was taken. When a sender dies after the server's 250 and before our COMMIT, or the connection dies
// before the 250 is read, the attempt's outcome stays unknown, its lease runs out and the mail is sent once more, under the same Message-ID, by
// which a mailbox may know it. For a webhook the Idempotency-Key closes the same window at the receiver.
package notify
