"""Scale adapters: small files of row and column scales that personalize or repair a coded UNet; codes never change."""
