"""Studies: they run recipes with one thing changed and tell the difference. Nothing else imports them."""
