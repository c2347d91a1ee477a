package render

// words are the phrases of a language.
type words struct {
	Order, Article, Quantity, Price, Sum, Total string
	Tracking, Short, Footer                     string
	stories                                     map[string]story
}

// story has the texts of one kind of mail.
type story struct{ Subject, Badge, Colour, Text string }

var vocabulary = map[string]words{
	"en": {
		Order: "Order", Article: "Article", Quantity: "Quantity", Price: "Price", Sum: "Sum", Total: "Total",
		Tracking: "Tracking code", Short: "only in stock:", Footer: "You get this mail because you ordered from us. You can choose what we write to you about in your account.",
		stories: map[string]story{
			"confirmed": {"Your order %s is confirmed", "Confirmed", "#1a7f37", "Everything you ordered is in stock and reserved for you. We write again when it is on its way."},
			"rejected":  {"Your order %s cannot be delivered", "Not available", "#b42318", "Not everything you ordered is in stock, so nothing is sent. You get back what you paid."},
			"shipped":   {"Your order %s is on its way", "Shipped", "#0b5cad", "Your parcel has left us."},
		},
	},
	"de": {
		Order: "Bestellung", Article: "Artikel", Quantity: "Menge", Price: "Preis", Sum: "Betrag", Total: "Summe",
		Tracking: "Sendungsnummer", Short: "nur auf Lager:", Footer: "Sie erhalten diese Mail, weil Sie bei uns bestellt haben. Worüber wir Ihnen schreiben, bestimmen Sie in Ihrem Konto.",
		stories: map[string]story{
			"confirmed": {"Ihre Bestellung %s ist bestätigt", "Bestätigt", "#1a7f37", "Alles, was Sie bestellt haben, ist auf Lager und für Sie reserviert. Wir schreiben wieder, wenn es unterwegs ist."},
			"rejected":  {"Ihre Bestellung %s kann nicht geliefert werden", "Nicht lieferbar", "#b42318", "Nicht alles, was Sie bestellt haben, ist auf Lager; deshalb wird nichts verschickt. Was Sie bezahlt haben, erhalten Sie zurück."},
			"shipped":   {"Ihre Bestellung %s ist unterwegs", "Verschickt", "#0b5cad", "Ihr Paket hat uns verlassen."},
		},
	},
}
